//! KV as an artefact describes it, for estimates of what chains make of a model's real KV.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use half::f16;
use half::slice::HalfFloatSliceExt as _;

use super::artefact::{ArtefactError, CodecArtefact};
use super::select::mix;
use crate::block::{KeyRope, KvBlock, LayerKv};

impl CodecArtefact {
    /// A context of `tokens` tokens from position 0, drawn from what the artefact says: the
    /// common first tokens as it holds them, then normal components of its variances around what
    /// its predictors make of the layers below. Tokens are independent of each other, which real
    /// ones are not.
    ///
    /// # Errors
    /// [`ArtefactError::Shape`] for no tokens.
    pub fn draw(&self, tokens: usize, seed: u64) -> Result<KvBlock, ArtefactError> {
        let model = self.model();
        let (row, head_dim) = (self.row(), model.shape.head_dim);
        let mut normal = Normal { state: seed };
        // Weighted rows of the layers so far, `[tokens, row]` each, the last at the end.
        let mut weighted: Vec<Vec<f32>> = Vec::new();
        let mut layers = Vec::new();
        for basis in self.layers() {
            let deviations: Vec<f32> = basis.variance.iter().map(|x| x.sqrt()).collect();
            let components: Vec<f32> = (0..tokens)
                .flat_map(|_| 0..row)
                .map(|component| deviations[component] * normal.next())
                .collect();
            let mut rows = vec![0.0; tokens * row];
            let mut add = |factor: &[f32], matrix: &[f16]| {
                let mut wide = vec![0.0_f32; matrix.len()];
                matrix.convert_to_f32_slice(&mut wide);
                matmul(
                    MatMut::from_row_major_slice_mut(&mut rows, tokens, row),
                    Accum::Add,
                    MatRef::from_row_major_slice(factor, tokens, row),
                    MatRef::from_row_major_slice(&wide, row, row),
                    1.0,
                    Par::Seq,
                );
            };
            add(&components, &basis.basis);
            let below = basis.predictor.chunks_exact(row * row);
            for (weights, below) in below.zip(weighted.iter().rev()) {
                add(below, weights);
            }
            let mut sides = [Vec::new(), Vec::new()];
            for (side, numbers) in sides.iter_mut().enumerate() {
                for start in (side * row / 2..(side + 1) * row / 2).step_by(head_dim) {
                    for token in 0..tokens {
                        numbers.extend((start..start + head_dim).map(|i| {
                            match basis.prefix.get(token * row + i) {
                                Some(known) => *known,
                                None => {
                                    let x = rows[token * row + i] / basis.weight[i] + basis.mean[i];
                                    f16::from_f32(x.clamp(-65504.0, 65504.0))
                                }
                            }
                        }));
                    }
                }
            }
            weighted.push(rows);
            let [k, v] = sides;
            layers.push(LayerKv { k, v });
        }
        let block = KvBlock::new(
            model.fingerprint,
            model.shape,
            0,
            0..tokens,
            KeyRope::Pre,
            layers,
        );
        Ok(block?)
    }
}

/// Numbers of a normal distribution with variance 1.
struct Normal {
    state: u64,
}

impl Normal {
    fn uniform(&mut self) -> f32 {
        self.state = self.state.wrapping_add(1);
        // 24 bits, none of them zero together.
        ((mix(self.state) >> 40) as f32 + 0.5) / (1 << 24) as f32
    }

    /// By Box and Muller.
    fn next(&mut self) -> f32 {
        let radius = (-2.0 * self.uniform().ln()).sqrt();
        radius * (std::f32::consts::TAU * self.uniform()).cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::align::BridgeEnd;
    use crate::block::KvShape;
    use crate::codec::{ArtefactFitter, ArtefactOptions};
    use crate::ident::ModelFingerprint;

    /// What is fitted on a drawn context says the same as what it was drawn from.
    #[test]
    fn a_drawn_context_has_the_statistics_of_its_artefact() {
        let model = BridgeEnd {
            fingerprint: ModelFingerprint::from_bytes([5; 32]),
            shape: KvShape::new(3, 1, 8).unwrap(),
        };
        let fit = |blocks: &[KvBlock]| {
            let mut fitter =
                ArtefactFitter::new(model, ArtefactOptions::new("hash", "test")).unwrap();
            blocks.iter().for_each(|block| fitter.add(block).unwrap());
            fitter.finish().unwrap()
        };
        let mut normal = Normal { state: 1 };
        // Channels of different spread, keys and values tied, each layer close to the one below.
        let mut source = || {
            let mut below = vec![0.0; 2000 * 8];
            let layers = (0..3)
                .map(|_| {
                    below.iter_mut().enumerate().for_each(|(i, x)| {
                        *x = 0.9 * *x + (i % 8 + 1) as f32 * normal.next();
                    });
                    let k: Vec<f16> = below.iter().map(|x| f16::from_f32(x + 3.0)).collect();
                    let v = below.iter().map(|x| f16::from_f32(0.1 * x)).collect();
                    LayerKv { k, v }
                })
                .collect();
            KvBlock::new(
                model.fingerprint,
                model.shape,
                0,
                0..2000,
                KeyRope::Pre,
                layers,
            )
            .unwrap()
        };
        let artefact = fit(&[source(), source()]);
        let drawn = artefact.draw(4000, 7).unwrap();
        assert_eq!(drawn, artefact.draw(4000, 7).unwrap());
        assert_ne!(drawn, artefact.draw(4000, 8).unwrap());
        let again = fit(&[drawn]);
        for (own, other) in artefact.layers().iter().zip(again.layers()) {
            let [own_total, other_total] =
                [own, other].map(|layer| layer.variance.iter().sum::<f32>());
            assert!(
                (own_total / other_total - 1.0).abs() < 0.1,
                "{own_total} {other_total}"
            );
            for (own, other) in own.mean.iter().zip(&other.mean) {
                assert!((own - other).abs() < 1.0, "{own} {other}");
            }
        }
        assert!(artefact.draw(0, 7).is_err());
    }
}
