//! A bridge as a network: the same maps, with weights that gradients reach.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor, Var};
use celslm_kv::Bridge;
use celslm_kv::align::{CommonPrefix, KvSide, Numbers, Part, Sources, Storage, Weights};

use crate::Result;
use crate::frozen::{FrozenDecoder, Kv};
use crate::tuned::{FROZEN, TunedKv};

/// Rows of a fitted map, standardised: every input with mean 0 and spread 1 over the text, every
/// output in units of its spread. Weights are of one size then, and one learning rate suits all.
struct PartNetwork {
    /// Mean and inverse spread of the inputs, `[source_width]`.
    centre: Tensor,
    scale: Tensor,
    /// `[source_width, rank]` where the map is in two factors.
    down: Option<Down>,
    runs: Vec<Run>,
    /// Whether the rows are added to the edge's own.
    residual: bool,
}

/// A first factor.
enum Down {
    Trained(Var),
    /// Stored in 8 bits and left as it is: what would be found between its codes could not be kept.
    /// The second factor is in units of what comes out of it.
    Frozen {
        weight: Tensor,
        units: Tensor,
    },
}

impl Down {
    fn weight(&self) -> &Tensor {
        match self {
            Self::Trained(weight) => weight,
            Self::Frozen { weight, .. } => weight,
        }
    }
}

/// The columns of one layer's keys or values.
struct Run {
    layer: usize,
    side: KvSide,
    first_head: usize,
    /// `[rank or source_width, columns]`.
    up: Var,
    /// `[columns]`.
    bias: Var,
    spread: Tensor,
}

/// All parts of a bridge.
pub(crate) struct MapNetwork {
    parts: Vec<PartNetwork>,
    /// The first tokens of every context, where the bridge has them.
    prefix: Option<TunedKv>,
    /// First tokens that are the edge's own where there is no prefix.
    sinks: usize,
}

/// A context as the network sees it.
pub(crate) struct Context {
    /// Standardised source rows of each part, `[tokens, source_width]`.
    rows: Vec<Tensor>,
    /// The edge model's own KV.
    pub(crate) own: Vec<Kv>,
    angles: (Tensor, Tensor),
    tokens: usize,
    /// Whether it begins with the bridge's prefix.
    begins: bool,
}

/// Mean and spread of columns.
struct Spread {
    mean: Vec<f32>,
    spread: Vec<f32>,
}

impl Spread {
    fn of(rows: &[f32], width: usize) -> Self {
        let count = (rows.len() / width).max(1) as f64;
        let mut sums = vec![(0.0f64, 0.0f64); width];
        for row in rows.chunks_exact(width) {
            for ((sum, squares), x) in sums.iter_mut().zip(row) {
                *sum += f64::from(*x);
                *squares += f64::from(*x).powi(2);
            }
        }
        let column = |(sum, squares): (f64, f64)| {
            let mean = sum / count;
            let spread = (squares / count - mean * mean).max(0.0).sqrt();
            // A column that never varies has no unit, and any will do.
            (mean as f32, if spread > 1e-6 { spread as f32 } else { 1.0 })
        };
        let (mean, spread) = sums.into_iter().map(column).unzip();
        Self { mean, spread }
    }
}

impl MapNetwork {
    /// The network of a bridge. Some contexts say how inputs and outputs vary.
    pub(crate) fn new(
        bridge: &Bridge,
        decoder: &FrozenDecoder,
        sample: &[Sources<'_>],
    ) -> Result<Self> {
        let head_dim = bridge.target().shape.head_dim;
        let sinks = bridge.manifest().skipped_tokens;
        let parts = bridge.parts().iter();
        let part = |part: &Part| PartNetwork::new(part, sample, sinks, head_dim, decoder.device());
        let prefix = bridge
            .prefix()
            .map(|prefix| prefix.tuned().unwrap_or(prefix.exact()));
        let prefix = prefix.filter(|block| block.num_tokens() > FROZEN);
        Ok(Self {
            parts: parts.map(part).collect::<Result<_>>()?,
            prefix: match prefix {
                Some(block) => Some(TunedKv::new(decoder, block)?),
                None => None,
            },
            sinks,
        })
    }

    /// Everything that is trained, always in the same order.
    pub(crate) fn variables(&self) -> Vec<&Var> {
        let mut found = Vec::new();
        for part in &self.parts {
            if let Some(Down::Trained(down)) = &part.down {
                found.push(down);
            }
            for run in &part.runs {
                found.extend([&run.up, &run.bias]);
            }
        }
        found.extend(self.prefix.iter().flat_map(TunedKv::variables));
        found
    }

    /// Reads a context's blocks.
    pub(crate) fn context(
        &self,
        bridge: &Bridge,
        decoder: &FrozenDecoder,
        from: Sources<'_>,
    ) -> Result<Context> {
        let own = from.own.unwrap_or(from.source);
        let tokens = own.num_tokens();
        let device = decoder.device();
        let mut rows = Vec::with_capacity(self.parts.len());
        for (network, part) in self.parts.iter().zip(bridge.parts()) {
            let numbers = part.source_rows(from)?;
            let width = numbers.len() / tokens.max(1);
            let x = Tensor::from_vec(numbers, (tokens, width), device)?;
            rows.push(
                x.broadcast_sub(&network.centre)?
                    .broadcast_mul(&network.scale)?,
            );
        }
        let positions: Vec<usize> = own.positions().collect();
        let angles = decoder.angles(&positions)?;
        let begins = bridge
            .prefix()
            .is_some_and(|prefix| from.tokens.starts_with(prefix.tokens()));
        Ok(Context {
            rows,
            own: decoder.own_kv(own)?,
            angles,
            tokens,
            begins,
        })
    }

    /// The context's KV as mapped, behind its first tokens, which are the prefix as tuned, or exact.
    pub(crate) fn forward(&self, decoder: &FrozenDecoder, context: &Context) -> Result<Vec<Kv>> {
        let head_dim = decoder.config().head_dim;
        let mut found: BTreeMap<(usize, KvSide), Vec<(usize, Tensor)>> = BTreeMap::new();
        for (part, x) in self.parts.iter().zip(&context.rows) {
            let features = match &part.down {
                Some(down) => x.matmul(down.weight())?,
                None => x.clone(),
            };
            for run in &part.runs {
                let y = features.matmul(&run.up)?.broadcast_add(&run.bias)?;
                let y = y.broadcast_mul(&run.spread)?;
                found
                    .entry((run.layer, run.side))
                    .or_default()
                    .push((run.first_head, y));
            }
        }
        let residual = self.parts.iter().any(|part| part.residual);
        let tuned = self.prefix.as_ref().filter(|_| context.begins);
        let first = tuned.map(TunedKv::kv).transpose()?;
        let exact = tuned.map_or(self.sinks, TunedKv::len).min(context.tokens);
        let mut side = |layer: usize, side: KvSide, own: &Tensor| -> Result<Tensor> {
            let rest = context.tokens - exact;
            let mut runs = found.remove(&(layer, side)).unwrap_or_default();
            runs.sort_by_key(|(head, _)| *head);
            let runs: Vec<Tensor> = runs.into_iter().map(|(_, y)| y).collect();
            let own_rest = own.narrow(1, exact, rest)?;
            let mapped = if runs.is_empty() {
                own_rest
            } else {
                let all = Tensor::cat(&runs, 1)?;
                let heads = all.dims()[1] / head_dim;
                let mut all = all.reshape((context.tokens, heads, head_dim))?;
                if side == KvSide::K {
                    // A rotation is linear: what is added may be rotated by itself.
                    all = decoder.rotate(&all, &context.angles)?;
                }
                let all = all.transpose(0, 1)?.narrow(1, exact, rest)?.contiguous()?;
                match residual {
                    true => (own_rest + all)?,
                    false => all,
                }
            };
            let begin = match &first {
                Some(first) => match side {
                    KvSide::K => first[layer].k.clone(),
                    KvSide::V => first[layer].v.clone(),
                },
                None => own.narrow(1, 0, exact)?,
            };
            Ok(Tensor::cat(&[&begin, &mapped.contiguous()?], 1)?)
        };
        let mut layers = Vec::with_capacity(context.own.len());
        for (layer, own) in context.own.iter().enumerate() {
            layers.push(Kv {
                k: side(layer, KvSide::K, &own.k)?,
                v: side(layer, KvSide::V, &own.v)?,
            });
        }
        Ok(layers)
    }

    /// The edge model's own KV behind the first tokens as they are tuned so far, without gradients.
    pub(crate) fn own(&self, context: &Context) -> Result<Vec<Kv>> {
        let Some(tuned) = self.prefix.as_ref().filter(|_| context.begins) else {
            return Ok(context.own.clone());
        };
        let rest = context.tokens - tuned.len();
        let join = |first: &Tensor, own: &Tensor| -> Result<Tensor> {
            let own = own.narrow(1, tuned.len(), rest)?;
            Ok(Tensor::cat(&[&first.detach(), &own], 1)?)
        };
        let layers = tuned.kv()?.into_iter().zip(&context.own);
        layers
            .map(|(first, own)| {
                Ok(Kv {
                    k: join(&first.k, &own.k)?,
                    v: join(&first.v, &own.v)?,
                })
            })
            .collect()
    }

    /// The bridge's parts with the network's numbers, stored as the bridge stores them.
    pub(crate) fn parts(&self, bridge: &Bridge) -> Result<Vec<Part>> {
        let mut parts = Vec::with_capacity(self.parts.len());
        for (network, part) in self.parts.iter().zip(bridge.parts()) {
            parts.push(network.part(part, bridge.storage())?);
        }
        Ok(parts)
    }

    /// The bridge's prefix as tuned.
    pub(crate) fn prefix(
        &self,
        bridge: &Bridge,
        decoder: &FrozenDecoder,
    ) -> Result<Option<CommonPrefix>> {
        let Some(prefix) = bridge.prefix().cloned() else {
            return Ok(None);
        };
        Ok(Some(match &self.prefix {
            Some(tuned) => prefix.with_tuned(tuned.block(decoder)?)?,
            None => prefix,
        }))
    }
}

impl PartNetwork {
    fn new(
        part: &Part,
        sample: &[Sources<'_>],
        sinks: usize,
        head_dim: usize,
        device: &Device,
    ) -> Result<Self> {
        let affine = &part.affine;
        let (p, q) = (affine.source_width(), affine.target_width());
        let (mut x, mut y) = (Vec::new(), Vec::new());
        for from in sample {
            x.extend(part.source_rows(*from)?.into_iter().skip(sinks * p));
            let own = from.own.unwrap_or(from.source);
            y.extend(part.target_rows(own)?.into_iter().skip(sinks * q));
        }
        let inputs = Spread::of(&x, p);
        let outputs = Spread::of(&y, q);
        let centre = Tensor::new(inputs.mean.as_slice(), device)?;
        let spread = Tensor::new(inputs.spread.as_slice(), device)?;
        // The map of standardised rows: `x W + b = ((x - m) / s) (s W) + (b + m W)`.
        let matrix = |m: &celslm_kv::align::Matrix| {
            Tensor::from_slice(m.numbers(), (m.rows(), m.columns()), device)
        };
        let bias = Tensor::new(affine.bias(), device)?;
        let (down, up, bias) = match affine.weights() {
            Weights::Dense(weight) => {
                let weight = matrix(weight)?;
                let shift = centre.unsqueeze(0)?.matmul(&weight)?.squeeze(0)?;
                let up = weight.broadcast_mul(&spread.unsqueeze(1)?)?;
                (None, up, (bias + shift)?)
            }
            Weights::Factored { down, up } => {
                let frozen = down.storage() == Storage::Int8;
                let (down, up) = (matrix(down)?, matrix(up)?);
                let shift = centre
                    .unsqueeze(0)?
                    .matmul(&down)?
                    .matmul(&up)?
                    .squeeze(0)?;
                let rank = down.dims()[1];
                let down = down.broadcast_mul(&spread.unsqueeze(1)?)?;
                let rows = Tensor::from_vec(x, ((), p), device)?;
                let rows = rows.broadcast_sub(&centre)?.broadcast_div(&spread)?;
                let between: Vec<f32> = rows.matmul(&down)?.flatten_all()?.to_vec1()?;
                let between = Tensor::new(Spread::of(&between, rank).spread, device)?;
                let weight = down.broadcast_div(&between)?;
                let units = between.unsqueeze(1)?;
                let up = up.broadcast_mul(&units)?;
                let down = match frozen {
                    true => Down::Frozen { weight, units },
                    false => Down::Trained(Var::from_tensor(&weight)?),
                };
                (Some(down), up, (bias + shift)?)
            }
        };
        let mut runs = Vec::new();
        let mut start = 0;
        for slots in part
            .outputs
            .chunk_by(|a, b| (a.layer, a.side) == (b.layer, b.side))
        {
            let columns = slots.len() * head_dim;
            let spread = Tensor::new(&outputs.spread[start..start + columns], device)?;
            let up = up
                .narrow(1, start, columns)?
                .broadcast_div(&spread)?
                .contiguous()?;
            let bias = (bias.narrow(0, start, columns)? / &spread)?;
            runs.push(Run {
                layer: slots[0].layer,
                side: slots[0].side,
                first_head: slots[0].head,
                up: Var::from_tensor(&up)?,
                bias: Var::from_tensor(&bias)?,
                spread,
            });
            start += columns;
        }
        Ok(Self {
            centre,
            scale: spread.recip()?,
            down,
            runs,
            residual: !part.own.is_empty(),
        })
    }

    fn part(&self, part: &Part, storage: Storage) -> Result<Part> {
        let wide = |run: &Run| run.up.broadcast_mul(&run.spread);
        let ups = self
            .runs
            .iter()
            .map(wide)
            .collect::<candle_core::Result<Vec<_>>>()?;
        let up = Tensor::cat(&ups, 1)?;
        let biases = self.runs.iter().map(|run| run.bias.mul(&run.spread));
        let biases = biases.collect::<candle_core::Result<Vec<_>>>()?;
        let bias = Tensor::cat(&biases, 0)?;
        let narrow = |weight: &Tensor| weight.broadcast_mul(&self.scale.unsqueeze(1)?);
        let centre = self.centre.unsqueeze(0)?;
        let flat = |x: &Tensor| x.flatten_all()?.to_vec1::<f32>();
        let affine = match &self.down {
            Some(down) => {
                let wide = narrow(down.weight())?;
                let shift = centre.matmul(&wide)?.matmul(&up)?.squeeze(0)?;
                let bias = flat(&(bias - shift)?)?;
                match down {
                    Down::Trained(_) => {
                        let (down, up) = (flat(&wide)?, flat(&up)?);
                        let numbers = Numbers::Factored {
                            down: &down,
                            up: &up,
                        };
                        part.affine.with_numbers(numbers, bias, storage)?
                    }
                    Down::Frozen { units, .. } => {
                        let up = flat(&up.broadcast_div(units)?)?;
                        let numbers = Numbers::Second(&up);
                        part.affine.with_numbers(numbers, bias, storage)?
                    }
                }
            }
            None => {
                let up = narrow(&up)?;
                let shift = centre.matmul(&up)?.squeeze(0)?;
                let up = flat(&up)?;
                let numbers = Numbers::Dense(&up);
                part.affine
                    .with_numbers(numbers, flat(&(bias - shift)?)?, storage)?
            }
        };
        Ok(Part {
            affine,
            ..part.clone()
        })
    }
}
