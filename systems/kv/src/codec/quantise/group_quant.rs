//! `group_quant`: asymmetric integer quantisation in groups, in the arrangement of KIVI
//! (Liu et al., arXiv 2402.02750): keys per channel, values per token.
//!
//! Keys have channels with a large offset that is nearly the same for all tokens, so a group
//! of keys is a run of tokens in one channel. Values have no such channels, so a group of
//! values is a run of channels of one token.

use half::f16;
use half::slice::HalfFloatSliceExt;
use serde::{Deserialize, Serialize};
use std::ops::Range;

use super::{Quantise, Symbols, pack};
use crate::codec::{Codec, CodecError, Tile, TileMut, TileShape, TileSpec};

/// Sortable image of the largest and of the lowest finite fp16 number, see [`sortable`].
const MAX_FINITE: i16 = 0x7bff;
const MIN_FINITE: i16 = -0x7c00;

/// 1.5 x 2^23: adding it to a number in 0..2^22 leaves the rounded integer in the low bits of
/// the mantissa. Unlike a float-to-integer cast, this compiles to two vector instructions.
const ROUND: f32 = 12_582_912.0;

/// Quantises each group of `group` elements to `bits` bits between its minimum and maximum.
///
/// An element is sent as `q = round((x - min) / scale)`; `min` and `scale` are fp16 per group.
/// `scale` is rounded up, so that the maximum never saturates, and is zero for a constant
/// group, which is therefore exact. The last group of keys may be shorter: with few tokens the
/// scales weigh more than the fp16 numbers themselves. NaN and infinities are refused.
///
/// Bytes, all little-endian, sections in this order ([`GroupQuant::layout`]):
/// 1. key parameters: per head and token group, `min[head_dim]` then `scale[head_dim]`;
/// 2. key codes: per head, rows of `head_dim` bytes that hold a channel's codes of several
///    tokens each ([`pack`](super::pack)), so that packing is a loop over whole rows;
/// 3. value parameters: per head, token and channel group, `min` then `scale`;
/// 4. value codes: as the key codes.
///
/// Loses below 3 bits, where the spread within a group leaves too few levels to the bulk of its
/// numbers, and to any entropy-coded form at equal error: codes near the middle are likelier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "GroupQuantFields", into = "GroupQuantFields")]
pub struct GroupQuant {
    bits: usize,
    group: usize,
}

/// The fields as written in a config file, not yet checked.
#[derive(Serialize, Deserialize)]
#[serde(rename = "GroupQuant", deny_unknown_fields)]
struct GroupQuantFields {
    bits: usize,
    #[serde(default = "default_group")]
    group: usize,
}

const fn default_group() -> usize {
    GroupQuant::BITS_4.group
}

impl TryFrom<GroupQuantFields> for GroupQuant {
    type Error = CodecError;

    fn try_from(fields: GroupQuantFields) -> Result<Self, CodecError> {
        Self::new(fields.bits, fields.group)
    }
}

impl From<GroupQuant> for GroupQuantFields {
    fn from(stage: GroupQuant) -> Self {
        Self {
            bits: stage.bits,
            group: stage.group,
        }
    }
}

/// Byte ranges of the four sections of an encoded tile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupQuantLayout {
    /// Minima and scales of the keys.
    pub key_params: Range<usize>,
    /// Codes of the keys.
    pub key_codes: Range<usize>,
    /// Minima and scales of the values.
    pub value_params: Range<usize>,
    /// Codes of the values.
    pub value_codes: Range<usize>,
}

impl GroupQuant {
    pub(in crate::codec) const NAME: &str = "group_quant";
    /// 4 bits, groups of 32.
    pub const BITS_4: Self = Self { bits: 4, group: 32 };
    /// 8 bits, groups of 32.
    pub const BITS_8: Self = Self { bits: 8, group: 32 };
    /// 3 bits, groups of 32.
    pub const BITS_3: Self = Self { bits: 3, group: 32 };
    /// 2 bits, groups of 32.
    pub const BITS_2: Self = Self { bits: 2, group: 32 };

    /// A quantiser of `bits` bits in groups of `group` elements.
    ///
    /// # Errors
    /// [`CodecError::Parameter`] for other widths than 8, 4, 3 and 2 bits, or a group that is
    /// not a multiple of 8 up to 1024.
    pub fn new(bits: usize, group: usize) -> Result<Self, CodecError> {
        let refuse = |parameter, value, allowed| {
            Err(CodecError::Parameter {
                stage: Self::NAME,
                parameter,
                value,
                allowed,
            })
        };
        if !matches!(bits, 2 | 3 | 4 | 8) {
            return refuse("bits", bits, "8, 4, 3 or 2");
        }
        if !(8..=1024).contains(&group) || !group.is_multiple_of(8) {
            return refuse("group", group, "a multiple of 8 from 8 to 1024");
        }
        Ok(Self { bits, group })
    }

    /// Bits per code.
    #[must_use]
    pub const fn bits(&self) -> usize {
        self.bits
    }

    /// Elements per group.
    #[must_use]
    pub const fn group(&self) -> usize {
        self.group
    }

    /// Where an encoded tile of this shape has its sections. The last one ends at the encoded
    /// length.
    #[must_use]
    pub fn layout(&self, shape: TileShape) -> GroupQuantLayout {
        let (heads, tokens, head_dim) = (shape.num_kv_heads(), shape.tokens(), shape.head_dim());
        let codes = heads * pack::rows(tokens, self.bits) * head_dim;
        let key_params = heads * tokens.div_ceil(self.group) * head_dim * 4;
        let key_codes = key_params + codes;
        let value_params = key_codes + shape.elements() / self.group * 4;
        let value_codes = value_params + codes;
        GroupQuantLayout {
            key_params: 0..key_params,
            key_codes: key_params..key_codes,
            value_params: key_codes..value_params,
            value_codes: value_params..value_codes,
        }
    }

    /// Reads `4b-g32`.
    pub(in crate::codec) fn from_parameters(text: &str) -> Result<Self, String> {
        let expected = || "expected bits and group as in group_quant-4b-g32".to_owned();
        let (bits, group) = text.split_once("b-g").ok_or_else(expected)?;
        let bits = bits.parse().map_err(|_| expected())?;
        let group = group.parse().map_err(|_| expected())?;
        let stage = Self::new(bits, group).map_err(|error| error.to_string())?;
        // One codec has one id: refuses forms like 04b-g+32.
        if stage.parameters() == text {
            Ok(stage)
        } else {
            Err(expected())
        }
    }

    fn parameters(&self) -> String {
        format!("{}b-g{}", self.bits, self.group)
    }

    const fn max_code(&self) -> f32 {
        ((1_u32 << self.bits) - 1) as f32
    }

    fn not_finite(&self, side: &'static str) -> CodecError {
        CodecError::NotFinite {
            codec: Codec::id(self),
            side,
        }
    }

    fn corrupt(&self, side: &str) -> CodecError {
        let reason = format!("a group of {side} has a scale or minimum that no encoder writes");
        CodecError::Corrupt {
            codec: Codec::id(self),
            reason,
        }
    }

    /// Codes of the keys, one byte each, and their parameters; `false` if one is not finite.
    fn code_keys(
        &self,
        shape: TileShape,
        keys: &[f16],
        mut params: &mut [u8],
        codes: &mut [u8],
    ) -> bool {
        let head_dim = shape.head_dim();
        let max_code = self.max_code();
        let mut range = KeyRange::new(head_dim);
        let mut numbers = vec![0.0_f32; head_dim];
        let head_run = shape.tokens() * head_dim;
        let heads = keys.chunks_exact(head_run);
        for (head, codes) in heads.zip(codes.chunks_exact_mut(head_run)) {
            let groups = head.chunks(self.group * head_dim);
            for (group, codes) in groups.zip(codes.chunks_mut(self.group * head_dim)) {
                range.measure(group);
                let here;
                (here, params) = params.split_at_mut(head_dim * 4);
                if !range.write(here, max_code) {
                    return false;
                }
                let (low, step) = (range.low.as_slice(), range.step.as_slice());
                let rows = group.chunks_exact(head_dim);
                for (row, codes) in rows.zip(codes.chunks_exact_mut(head_dim)) {
                    row.convert_to_f32_slice(&mut numbers);
                    for (((out, x), low), step) in codes.iter_mut().zip(&numbers).zip(low).zip(step)
                    {
                        *out = code(*x, *low, *step, max_code);
                    }
                }
            }
        }
        true
    }

    /// Keys from their codes; `false` if a parameter is not one that an encoder writes.
    fn number_keys(
        &self,
        shape: TileShape,
        codes: &[u8],
        mut params: &[u8],
        keys: &mut [f16],
    ) -> bool {
        let head_dim = shape.head_dim();
        let mut range = KeyRange::new(head_dim);
        let mut numbers = vec![0.0_f32; head_dim];
        let head_run = shape.tokens() * head_dim;
        let heads = keys.chunks_exact_mut(head_run);
        for (head, codes) in heads.zip(codes.chunks_exact(head_run)) {
            let groups = head.chunks_mut(self.group * head_dim);
            for (group, codes) in groups.zip(codes.chunks(self.group * head_dim)) {
                let here;
                (here, params) = params.split_at(head_dim * 4);
                if !range.read(here) {
                    return false;
                }
                let (low, step) = (range.low.as_slice(), range.step.as_slice());
                let rows = group.chunks_exact_mut(head_dim);
                for (row, codes) in rows.zip(codes.chunks_exact(head_dim)) {
                    for (((x, code), low), step) in numbers.iter_mut().zip(codes).zip(low).zip(step)
                    {
                        *x = number(*code, *low, *step);
                    }
                    row.convert_from_f32_slice(&numbers);
                }
            }
        }
        true
    }

    /// Codes of the values, one byte each, and their parameters; `false` if one is not finite.
    fn code_values(&self, values: &[f16], params: &mut [u8], codes: &mut [u8]) -> bool {
        let max_code = self.max_code();
        let mut numbers = vec![0.0_f32; self.group];
        let groups = values.chunks_exact(self.group);
        let out = params.as_chunks_mut::<4>().0.iter_mut();
        let codes = codes.chunks_exact_mut(self.group);
        for ((group, params), codes) in groups.zip(out).zip(codes) {
            let (mut min, mut max) = (i16::MAX, i16::MIN);
            for bits in group.reinterpret_cast() {
                let image = sortable(*bits);
                min = min.min(image);
                max = max.max(image);
            }
            if min < MIN_FINITE || max > MAX_FINITE {
                return false;
            }
            let (low, scale) = quantiser(min, max, max_code);
            params[..2].copy_from_slice(&low.to_le_bytes());
            params[2..].copy_from_slice(&scale.to_le_bytes());
            let (low, step) = (low.to_f32(), inverse(scale));
            group.convert_to_f32_slice(&mut numbers);
            for (out, x) in codes.iter_mut().zip(&numbers) {
                *out = code(*x, low, step, max_code);
            }
        }
        true
    }

    /// Values from their codes; `false` if a parameter is not one that an encoder writes.
    fn number_values(&self, codes: &[u8], params: &[u8], values: &mut [f16]) -> bool {
        let mut numbers = vec![0.0_f32; self.group];
        let groups = values.chunks_exact_mut(self.group);
        let params = params.as_chunks::<4>().0.iter();
        let codes = codes.chunks_exact(self.group);
        for ((group, [a, b, c, d]), codes) in groups.zip(params).zip(codes) {
            let (low, step) = (u16::from_le_bytes([*a, *b]), u16::from_le_bytes([*c, *d]));
            if !valid(low, step) {
                return false;
            }
            let (low, step) = (f16::from_bits(low).to_f32(), f16::from_bits(step).to_f32());
            for (x, code) in numbers.iter_mut().zip(codes) {
                *x = number(*code, low, step);
            }
            group.convert_from_f32_slice(&numbers);
        }
        true
    }

    /// Packs the codes of both sides, head by head.
    fn pack(&self, shape: TileShape, codes: &[u8], out: &mut [u8]) {
        let head_dim = shape.head_dim();
        let packed_run = pack::rows(shape.tokens(), self.bits) * head_dim;
        let heads = codes.chunks_exact(shape.tokens() * head_dim);
        for (head, out) in heads.zip(out.chunks_exact_mut(packed_run)) {
            pack::pack(head, head_dim, self.bits, out);
        }
    }

    /// The reverse of [`Self::pack`].
    fn unpack(&self, shape: TileShape, bytes: &[u8], codes: &mut [u8]) {
        let head_dim = shape.head_dim();
        let packed_run = pack::rows(shape.tokens(), self.bits) * head_dim;
        let heads = codes.chunks_exact_mut(shape.tokens() * head_dim);
        for (head, bytes) in heads.zip(bytes.chunks_exact(packed_run)) {
            pack::unpack(bytes, head_dim, self.bits, head);
        }
    }

    fn check_length(&self, expected: usize, found: usize) -> Result<(), CodecError> {
        if found == expected {
            return Ok(());
        }
        Err(CodecError::Length {
            codec: Codec::id(self),
            expected,
            found,
        })
    }
}

impl Quantise for GroupQuant {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn check_shape(&self, shape: TileShape) -> Result<(), CodecError> {
        Codec::check_shape(self, shape)
    }

    fn widths(&self, spec: &TileSpec) -> [Vec<u8>; 2] {
        let channels = spec.shape.num_kv_heads() * spec.shape.head_dim();
        let widths = vec![self.bits as u8; channels];
        [widths.clone(), widths]
    }

    fn quantise(&self, tile: &Tile<'_>, symbols: &mut Symbols) -> Result<Vec<u8>, CodecError> {
        let shape = tile.shape();
        Codec::check_shape(self, shape)?;
        let layout = self.layout(shape);
        let (key_params, value_params) = (layout.key_params.len(), layout.value_params.len());
        let mut side = vec![0; key_params + value_params];
        let (keys, values) = side.split_at_mut(key_params);
        let mut codes = vec![0; shape.elements()];
        let middle = 1 << (self.bits - 1);
        let signed = |symbols: &mut [i16], codes: &[u8]| {
            for (symbol, code) in symbols.iter_mut().zip(codes) {
                *symbol = i16::from(*code) - middle;
            }
        };
        if !self.code_keys(shape, tile.k(), keys, &mut codes) {
            return Err(self.not_finite("keys"));
        }
        signed(&mut symbols.k, &codes);
        if !self.code_values(tile.v(), values, &mut codes) {
            return Err(self.not_finite("values"));
        }
        signed(&mut symbols.v, &codes);
        Ok(side)
    }

    fn dequantise(
        &self,
        symbols: &Symbols,
        side: &[u8],
        tile: &mut TileMut<'_>,
    ) -> Result<(), CodecError> {
        let shape = tile.shape();
        let layout = self.layout(shape);
        let (key_params, value_params) = (layout.key_params.len(), layout.value_params.len());
        self.check_length(key_params + value_params, side.len())?;
        let (keys, values) = side.split_at(key_params);
        let mut codes = vec![0; shape.elements()];
        let middle = 1 << (self.bits - 1);
        // Symbol coders keep symbols within the width.
        let unsigned = |codes: &mut [u8], symbols: &[i16]| {
            for (code, symbol) in codes.iter_mut().zip(symbols) {
                *code = (symbol + middle) as u8;
            }
        };
        unsigned(&mut codes, &symbols.k);
        if !self.number_keys(shape, &codes, keys, tile.k()) {
            return Err(self.corrupt("keys"));
        }
        unsigned(&mut codes, &symbols.v);
        if !self.number_values(&codes, values, tile.v()) {
            return Err(self.corrupt("values"));
        }
        Ok(())
    }

    fn side_len(&self, shape: TileShape) -> usize {
        let layout = self.layout(shape);
        layout.key_params.len() + layout.value_params.len()
    }

    fn error_bound(&self, min: f32, max: f32) -> Option<f32> {
        Codec::error_bound(self, min, max)
    }
}

impl Codec for GroupQuant {
    fn id(&self) -> String {
        format!("{}-{}", Self::NAME, self.parameters())
    }

    fn check_shape(&self, shape: TileShape) -> Result<(), CodecError> {
        let (head_dim, group) = (shape.head_dim(), self.group);
        if head_dim.is_multiple_of(group) {
            return Ok(());
        }
        Err(CodecError::UnsupportedShape {
            codec: Codec::id(self),
            reason: format!("head_dim {head_dim} is not a multiple of the group, {group}"),
        })
    }

    fn encode(&self, tile: &Tile<'_>, out: &mut Vec<u8>) -> Result<(), CodecError> {
        let shape = tile.shape();
        Codec::check_shape(self, shape)?;
        let start = out.len();
        out.resize(start + self.encoded_len(shape), 0);
        let layout = self.layout(shape);
        let (keys, values) = out[start..].split_at_mut(layout.key_codes.end);
        let (key_params, key_codes) = keys.split_at_mut(layout.key_params.end);
        let (value_params, value_codes) = values.split_at_mut(layout.value_params.len());
        let mut codes = vec![0; shape.elements()];
        let keys_finite = self.code_keys(shape, tile.k(), key_params, &mut codes);
        self.pack(shape, &codes, key_codes);
        let values_finite = self.code_values(tile.v(), value_params, &mut codes);
        self.pack(shape, &codes, value_codes);
        for (finite, side) in [(keys_finite, "keys"), (values_finite, "values")] {
            if !finite {
                out.truncate(start);
                return Err(self.not_finite(side));
            }
        }
        Ok(())
    }

    fn decode(&self, bytes: &[u8], tile: &mut TileMut<'_>) -> Result<(), CodecError> {
        let shape = tile.shape();
        Codec::check_shape(self, shape)?;
        self.check_length(self.encoded_len(shape), bytes.len())?;
        let layout = self.layout(shape);
        let mut codes = vec![0; shape.elements()];
        self.unpack(shape, &bytes[layout.key_codes.clone()], &mut codes);
        if !self.number_keys(shape, &codes, &bytes[layout.key_params.clone()], tile.k()) {
            return Err(self.corrupt("keys"));
        }
        self.unpack(shape, &bytes[layout.value_codes.clone()], &mut codes);
        if !self.number_values(&codes, &bytes[layout.value_params.clone()], tile.v()) {
            return Err(self.corrupt("values"));
        }
        for (what, range) in [
            ("minima and scales of keys", layout.key_params),
            ("codes of keys", layout.key_codes),
            ("minima and scales of values", layout.value_params),
            ("codes of values", layout.value_codes),
        ] {
            tile.count(Self::NAME, what, range.len());
        }
        Ok(())
    }

    fn encoded_len(&self, shape: TileShape) -> usize {
        self.layout(shape).value_codes.end
    }

    fn nominal_bits(&self) -> f64 {
        self.bits as f64 + 32.0 / self.group as f64
    }

    fn token_group(&self) -> usize {
        self.group
    }

    fn error_bound(&self, min: f32, max: f32) -> Option<f32> {
        let span = max - min;
        if span == 0.0 {
            return Some(0.0);
        }
        // The scale is rounded up to fp16, normal or subnormal; the reconstruction is rounded
        // to nearest. The slack over one half covers the f32 arithmetic of up to 255 steps.
        let scale = span / self.max_code() * (1.0 + 1.0 / 1024.0) + 2.0_f32.powi(-24);
        let largest = min.abs().max(max.abs()) + scale;
        Some(0.5002 * scale + largest * 2.0_f32.powi(-11) + 2.0_f32.powi(-25))
    }
}

/// Ranges of one group of keys, channel by channel.
struct KeyRange {
    min: Vec<i16>,
    max: Vec<i16>,
    low: Vec<f32>,
    /// `1 / scale` while encoding, `scale` while decoding.
    step: Vec<f32>,
}

impl KeyRange {
    fn new(head_dim: usize) -> Self {
        let (min, max) = (vec![0; head_dim], vec![0; head_dim]);
        Self {
            min,
            max,
            low: vec![0.0; head_dim],
            step: vec![0.0; head_dim],
        }
    }

    /// Takes the extremes of a run of rows.
    fn measure(&mut self, rows: &[f16]) {
        self.min.fill(i16::MAX);
        self.max.fill(i16::MIN);
        for row in rows.chunks_exact(self.min.len()) {
            let extremes = self.min.iter_mut().zip(&mut self.max);
            for ((min, max), bits) in extremes.zip(row.reinterpret_cast()) {
                let image = sortable(*bits);
                *min = (*min).min(image);
                *max = (*max).max(image);
            }
        }
    }

    /// Writes minima and scales and prepares `low` and `step`; `false` if the group held a
    /// number that is not finite.
    fn write(&mut self, params: &mut [u8], max_code: f32) -> bool {
        let (lows, scales) = params.split_at_mut(self.min.len() * 2);
        let params = lows
            .as_chunks_mut::<2>()
            .0
            .iter_mut()
            .zip(scales.as_chunks_mut::<2>().0);
        let steps = self.low.iter_mut().zip(&mut self.step);
        let mut finite = true;
        for (((min, max), (low_bytes, scale_bytes)), (low, step)) in
            self.min.iter().zip(&self.max).zip(params).zip(steps)
        {
            finite &= *min >= MIN_FINITE && *max <= MAX_FINITE;
            let (low_half, scale) = quantiser(*min, *max, max_code);
            *low_bytes = low_half.to_le_bytes();
            *scale_bytes = scale.to_le_bytes();
            *low = low_half.to_f32();
            *step = inverse(scale);
        }
        finite
    }

    /// Reads minima and scales; `false` if one is not what an encoder writes.
    fn read(&mut self, params: &[u8]) -> bool {
        let (lows, scales) = params.split_at(self.min.len() * 2);
        let params = lows
            .as_chunks::<2>()
            .0
            .iter()
            .zip(scales.as_chunks::<2>().0);
        let mut all_valid = true;
        for ((low, step), (low_bytes, scale_bytes)) in
            self.low.iter_mut().zip(&mut self.step).zip(params)
        {
            let (low_bits, scale) = (
                u16::from_le_bytes(*low_bytes),
                u16::from_le_bytes(*scale_bytes),
            );
            all_valid &= valid(low_bits, scale);
            *low = f16::from_bits(low_bits).to_f32();
            *step = f16::from_bits(scale).to_f32();
        }
        all_valid
    }
}

/// Maps fp16 bits to integers of the same order, -0 below +0, NaN outside the infinities.
/// Integer minima need no special case for NaN, so the loops over them vectorise.
const fn sortable(bits: u16) -> i16 {
    let bits = bits.cast_signed();
    bits ^ ((bits >> 15) & i16::MAX)
}

/// Minimum and scale of a group with these extremes.
fn quantiser(min: i16, max: i16, max_code: f32) -> (f16, f16) {
    // The map of `sortable` is its own inverse.
    let low = f16::from_bits(sortable(min.cast_unsigned()).cast_unsigned());
    let high = f16::from_bits(sortable(max.cast_unsigned()).cast_unsigned());
    let exact = (high.to_f32() - low.to_f32()) / max_code;
    let scale = f16::from_f32(exact);
    let round_up = u16::from(scale.to_f32() < exact);
    (low, f16::from_bits(scale.to_bits() + round_up))
}

fn inverse(scale: f16) -> f32 {
    if scale.to_bits() == 0 {
        0.0
    } else {
        scale.to_f32().recip()
    }
}

/// Finite minimum and finite, non-negative scale.
const fn valid(low: u16, scale: u16) -> bool {
    (low & 0x7fff) < 0x7c00 && scale < 0x7c00
}

/// The code of a number; `step` is the inverse of the scale.
#[inline]
fn code(x: f32, low: f32, step: f32, max_code: f32) -> u8 {
    (((x - low) * step).min(max_code) + ROUND).to_bits() as u8
}

/// The number of a code, within the finite fp16 numbers.
#[inline]
fn number(code: u8, low: f32, scale: f32) -> f32 {
    (f32::from(code) * scale + low).clamp(-65504.0, 65504.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::TileSpec;
    use proptest::prelude::*;

    fn round_trip(stage: GroupQuant, shape: TileShape, k: &[f16], v: &[f16]) -> [Vec<f16>; 2] {
        let spec = TileSpec::alone(shape);
        let mut bytes = Vec::new();
        stage
            .encode(&Tile::new(spec, k, v).unwrap(), &mut bytes)
            .unwrap();
        assert_eq!(bytes.len(), stage.encoded_len(shape));
        let mut out = [vec![f16::ZERO; k.len()], vec![f16::ZERO; v.len()]];
        let [k, v] = &mut out;
        stage
            .decode(&bytes, &mut TileMut::new(spec, k, v).unwrap())
            .unwrap();
        out
    }

    #[test]
    fn sizes_are_what_the_layout_says() {
        // 2 heads, 64 tokens, 64 channels, 4 bits: codes 4096 bytes per side, and one pair of
        // fp16 parameters per 32 elements is 1024 bytes per side.
        let shape = TileShape::new(2, 64, 64).unwrap();
        let layout = GroupQuant::BITS_4.layout(shape);
        assert_eq!(layout.key_params, 0..1024);
        assert_eq!(layout.key_codes, 1024..5120);
        assert_eq!(layout.value_params, 5120..6144);
        assert_eq!(layout.value_codes, 6144..10_240);
        let bits = GroupQuant::BITS_4.encoded_len(shape) * 8;
        assert_eq!(
            bits as f64 / (2 * shape.elements()) as f64,
            GroupQuant::BITS_4.nominal_bits()
        );
        // One token more starts a new group of keys and half fills a row of bytes.
        let ragged = TileShape::new(2, 65, 64).unwrap();
        assert_eq!(
            GroupQuant::BITS_4.layout(ragged).key_codes.len(),
            4096 + 2 * 64
        );
    }

    #[test]
    fn keys_are_grouped_along_tokens_and_values_along_channels() {
        // Channel offsets far apart, constant over tokens: exact as keys, coarse as values.
        let shape = TileShape::new(1, 32, 32).unwrap();
        let by_channel: Vec<f16> = (0..1024)
            .map(|i| f16::from_f32(((i % 32) * 37 % 101) as f32))
            .collect();
        let by_token: Vec<f16> = (0..1024)
            .map(|i| f16::from_f32(((i / 32) * 37 % 101) as f32))
            .collect();
        let [k, v] = round_trip(GroupQuant::BITS_4, shape, &by_channel, &by_token);
        assert_eq!(k, by_channel);
        assert_eq!(v, by_token);
        let [k, v] = round_trip(GroupQuant::BITS_4, shape, &by_token, &by_channel);
        assert_ne!(k, by_token);
        assert_ne!(v, by_channel);
    }

    #[test]
    fn integers_of_the_code_range_are_exact() {
        let shape = TileShape::new(1, 32, 32).unwrap();
        for (stage, levels) in [
            (GroupQuant::BITS_2, 4),
            (GroupQuant::BITS_3, 8),
            (GroupQuant::BITS_4, 16),
            (GroupQuant::BITS_8, 256),
        ] {
            // Every row and every column holds 0 and the largest code, so all scales are one.
            let side: Vec<f16> = (0..1024)
                .map(|i| match (i / 32 + i % 32) % 32 {
                    0 => 0,
                    1 => levels - 1,
                    other => (other * 7) % levels,
                })
                .map(|x| f16::from_f32(x as f32))
                .collect();
            let [k, v] = round_trip(stage, shape, &side, &side);
            assert_eq!(k, side);
            assert_eq!(v, side);
        }
    }

    #[test]
    fn extremes_stay_finite_and_keep_their_ends() {
        let shape = TileShape::new(1, 3, 32).unwrap();
        let side: Vec<f16> = (0..96)
            .map(|i| if i % 2 == 0 { f16::MIN } else { f16::MAX })
            .collect();
        for stage in [GroupQuant::BITS_4, GroupQuant::BITS_8] {
            let [k, v] = round_trip(stage, shape, &side, &side);
            let bound = Codec::error_bound(&stage, -65504.0, 65504.0).unwrap();
            for (x, y) in k.iter().chain(&v).zip(side.iter().chain(&side)) {
                assert!(x.is_finite());
                assert!((x.to_f32() - y.to_f32()).abs() <= bound);
            }
        }
    }

    #[test]
    fn numbers_that_are_not_finite_are_refused() {
        let shape = TileShape::new(1, 3, 32).unwrap();
        let spec = TileSpec::alone(shape);
        let clean = vec![f16::ONE; 96];
        for bad in [
            f16::NAN,
            f16::from_bits(0xfe01),
            f16::INFINITY,
            f16::NEG_INFINITY,
        ] {
            let mut dirty = clean.clone();
            dirty[77] = bad;
            let mut out = vec![1, 2, 3];
            let keys =
                GroupQuant::BITS_4.encode(&Tile::new(spec, &dirty, &clean).unwrap(), &mut out);
            assert!(matches!(
                keys,
                Err(CodecError::NotFinite { side: "keys", .. })
            ));
            let values =
                GroupQuant::BITS_8.encode(&Tile::new(spec, &clean, &dirty).unwrap(), &mut out);
            assert!(matches!(
                values,
                Err(CodecError::NotFinite { side: "values", .. })
            ));
            assert_eq!(out, [1, 2, 3]);
        }
    }

    #[test]
    fn foreign_parameters_are_refused() {
        let shape = TileShape::new(1, 32, 32).unwrap();
        let mut bytes = vec![0; GroupQuant::BITS_4.encoded_len(shape)];
        let (mut k, mut v) = (vec![f16::ZERO; 1024], vec![f16::ZERO; 1024]);
        let mut decode = |bytes: &[u8]| {
            let mut tile = TileMut::new(TileSpec::alone(shape), &mut k, &mut v).unwrap();
            GroupQuant::BITS_4.decode(bytes, &mut tile)
        };
        assert_eq!(decode(&bytes), Ok(()));
        bytes[64..66].copy_from_slice(&f16::NEG_ONE.to_le_bytes());
        assert!(matches!(decode(&bytes), Err(CodecError::Corrupt { .. })));
        bytes[64..66].copy_from_slice(&f16::INFINITY.to_le_bytes());
        assert!(matches!(decode(&bytes), Err(CodecError::Corrupt { .. })));
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let shape = TileShape::new(1, 1, 48).unwrap();
        let error = Codec::check_shape(&GroupQuant::BITS_4, shape)
            .unwrap_err()
            .to_string();
        assert!(error.contains("head_dim 48"), "{error}");
        assert!(Codec::check_shape(&GroupQuant::new(8, 24).unwrap(), shape).is_ok());
    }

    proptest! {
        /// The bound holds group by group, not only over the whole tile.
        #[test]
        fn error_is_bounded_by_the_range_of_the_group(
            bits in prop_oneof![Just(2_usize), Just(3), Just(4), Just(8)],
            heads in 1_usize..3,
            tokens in 1_usize..40,
            groups in 1_usize..4,
            seed in proptest::collection::vec(-60000.0_f32..60000.0, 8),
            exponent in -30_i32..1,
        ) {
            let (group, head_dim) = (8, 8 * groups);
            let stage = GroupQuant::new(bits, group).unwrap();
            let shape = TileShape::new(heads, tokens, head_dim).unwrap();
            let scale = 2.0_f32.powi(exponent);
            let side = |salt: usize| -> Vec<f16> {
                (0..shape.elements())
                    .map(|i| {
                        let wave = ((i * 2654435761 + salt) % 1009) as f32 / 1009.0;
                        f16::from_f32(seed[(i / 3 + salt) % 8] * wave * scale)
                    })
                    .collect()
            };
            let (k, v) = (side(1), side(5));
            let [k_out, v_out] = round_trip(stage, shape, &k, &v);
            let check = |indices: Vec<usize>, before: &[f16], after: &[f16]| {
                let numbers = indices.iter().map(|i| before[*i].to_f32());
                let min = numbers.clone().fold(f32::INFINITY, f32::min);
                let max = numbers.fold(f32::NEG_INFINITY, f32::max);
                let bound = Codec::error_bound(&stage, min, max).unwrap();
                for i in indices {
                    let error = (before[i].to_f32() - after[i].to_f32()).abs();
                    prop_assert!(error <= bound, "{error} > {bound} at {i} in {min}..{max}");
                }
                Ok(())
            };
            for head in 0..heads {
                for first in (0..tokens).step_by(group) {
                    for channel in 0..head_dim {
                        let run = first..(first + group).min(tokens);
                        let at = |t| (head * tokens + t) * head_dim + channel;
                        check(run.map(at).collect(), &k, &k_out)?;
                    }
                }
            }
            for first in (0..shape.elements()).step_by(group) {
                check((first..first + group).collect(), &v, &v_out)?;
            }
        }
    }
}
