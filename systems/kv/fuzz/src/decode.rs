//! Decoders: two bytes name the chain, four say where the tile stands and what its shape is, and
//! the rest is the payload.

use celslm_kv::codec::{
    Beside, Codec as _, CodecError, Held, Prior, Tile, TileMut, TileShape, TileSpec,
};
use half::f16;

use crate::{Entry, HEAD_DIM, HEADS, LAYERS, chain, chains, numbers, passes_fp16, scores, within};

/// Bytes before the payload.
pub const HEADER: usize = 6;
/// Memory that a decoder may take beside 32 times the tile: entropy coders' models and zstd's
/// window are of a fixed size.
const FIXED_MEMORY: usize = 2 << 20;

/// Where a tile stands: a function of four bytes, which every four bytes give a meaning to.
fn spec([shape, tokens, first, more]: [u8; 4]) -> TileSpec {
    // Mostly the shape that the artefact suits; others are for the decoders to refuse.
    let heads = if shape & 0x04 == 0 { HEADS } else { 2 };
    let head_dim =
        [HEAD_DIM, HEAD_DIM, HEAD_DIM, HEAD_DIM, 8, 64, 24, 1][usize::from(shape >> 3 & 7)];
    // Few, which is fast, and now and then more than a group.
    let tokens = [1, 2, 3, 4, 2, 3, 8, 12][usize::from(tokens % 8)];
    let first_token = usize::from(first);
    TileSpec {
        shape: TileShape::new(heads, tokens, head_dim).expect("a small shape"),
        layer: usize::from(shape & 1),
        num_layers: LAYERS,
        first_token,
        end_token: first_token + tokens + usize::from(more),
    }
}

/// Layers below the tile, as many as the chain wants and there are.
fn below(wanted: usize, spec: &TileSpec) -> Vec<[Vec<f16>; 2]> {
    let elements = spec.shape.elements();
    (0..wanted.min(spec.layer))
        .map(|_| [7, 8].map(|seed| numbers(elements, spec.shape.head_dim(), seed)))
        .collect()
}

fn priors(below: &[[Vec<f16>; 2]]) -> Vec<Prior<'_>> {
    below.iter().map(|[k, v]| Prior { k, v }).collect()
}

/// Decodes a payload and holds the decoder to its promises.
///
/// # Panics
/// If it breaks one.
pub fn run(data: &[u8]) {
    let Some((&[low, high, a, b, c, d], payload)) = data.split_first_chunk::<HEADER>() else {
        return;
    };
    let chain = chain(chains(), u16::from_le_bytes([low, high]));
    let spec = spec([a, b, c, d]);
    let shape = spec.shape;
    let below = below(chain.prior_layers(), &spec);
    let prior = priors(&below);
    let beside = Beside {
        positions: None,
        prior: &prior,
    };
    let (mut k, mut v) = (
        vec![f16::NAN; shape.elements()],
        vec![f16::NAN; shape.elements()],
    );
    let mut tile = TileMut::new(spec, &mut k, &mut v).expect("sides of the shape");
    tile = tile.with_beside(beside).expect("layers of the shape");
    let allowed = FIXED_MEMORY + 32 * shape.fp16_bytes();
    let outcome = within(allowed, || chain.decode(payload, &mut tile));
    let held = tile.held().clone();
    match outcome {
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(()) => {
            assert!(
                payload.len() <= chain.encoded_len(shape),
                "{} decodes {} bytes, and says that {} are the most",
                chain.id(),
                payload.len(),
                chain.encoded_len(shape)
            );
            let finite = k.iter().chain(&v).all(|x| x.is_finite());
            assert!(finite || passes_fp16(chain), "{}", chain.id());
            check_held(&held, shape, &k, &v);
        }
    }
}

/// The tokens that are not held have rows of zeros, and those that are lie in the tile, in order.
fn check_held(held: &Held, shape: TileShape, k: &[f16], v: &[f16]) {
    let Held::Some(offsets) = held else { return };
    assert!(offsets.is_sorted_by(|a, b| a < b));
    assert!(offsets.last().is_none_or(|last| *last < shape.tokens()));
    for side in [k, v] {
        for (row, numbers) in side.chunks_exact(shape.head_dim()).enumerate() {
            if offsets.binary_search(&(row % shape.tokens())).is_err() {
                assert!(numbers.iter().all(|x| *x == f16::ZERO));
            }
        }
    }
}

/// Inputs whose payload an encoder wrote, four places of a tile for each chain.
pub fn seeds() -> crate::Seeds {
    // The first tile of a context, one in its middle with a layer below it, one at its end.
    let places = [[0, 2, 0, 40], [1, 7, 90, 200], [0, 4, 30, 0], [1, 0, 0, 9]];
    let mut seeds = Vec::new();
    for Entry { tag, chain } in chains() {
        for (index, place) in places.into_iter().enumerate() {
            let spec = spec(place);
            let payload = match encode(chain, spec) {
                Ok(payload) => payload,
                Err(CodecError::UnsupportedShape { .. }) => continue,
                Err(error) => panic!("{}: {error}", chain.id()),
            };
            let mut input = tag.to_le_bytes().to_vec();
            input.extend(place);
            input.extend(payload);
            seeds.push((format!("{tag:04x}-{index}"), input));
        }
    }
    seeds
}

fn encode(chain: &celslm_kv::Chain, spec: TileSpec) -> Result<Vec<u8>, CodecError> {
    let elements = spec.shape.elements();
    let [k, v] = [3, 4].map(|seed| numbers(elements, spec.shape.head_dim(), seed));
    let below = below(chain.prior_layers(), &spec);
    let prior = priors(&below);
    let beside = Beside {
        positions: None,
        prior: &prior,
    };
    let scores = scores();
    let tile = Tile::new(spec, &k, &v)?.with_beside(beside)?;
    let mut payload = Vec::new();
    chain.encode(&tile.with_scores(Some(&scores)), &mut payload)?;
    Ok(payload)
}
