//! A weight matrix in the layout of the kernels, at the precision of its file.
//!
//! Sixteen rows form a panel. Along its columns a panel is a chain of blocks, each the scales
//! of its groups followed by their integers; four neighbouring columns of the sixteen rows fill
//! a vector, as the integer dot product wants them. Nothing is rounded: unpacking gives the
//! weights of the file, and a packed matrix takes its file's bytes plus 0 to 3%.

use super::blocks::{Bits, Format, Group, Scales, read_group};
use super::pool::Turn;
use super::{GROUP, PANEL};
use crate::ModelError;
use candle_core::quantized::GgmlDType;
use half::f16;
use memmap2::{Advice, Mmap, MmapMut};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// The packed weights of a model, in one mapping: page-aligned, on large pages where the system
/// grants them, and read-only once they are complete.
pub(crate) struct Arena {
    shared: Arc<OnceLock<Mmap>>,
    map: MmapMut,
    used: usize,
}

impl Arena {
    /// Memory for matrices of these formats and shapes (`[rows, columns]`).
    ///
    /// # Errors
    /// [`ModelError::Memory`] when it cannot be had.
    pub(crate) fn new(
        matrices: impl Iterator<Item = (GgmlDType, usize, usize)>,
    ) -> Result<Self, ModelError> {
        let bytes = matrices
            .filter_map(|(dtype, rows, columns)| {
                let format = packed_format(dtype, columns)?;
                Some(rows.div_ceil(PANEL) * panel_bytes(format, columns))
            })
            .sum::<usize>();
        let map = MmapMut::map_anon(bytes.max(1)).map_err(ModelError::Memory)?;
        // A decode step reads every weight once, and the address translations of small pages
        // take a measurable part of that. Refusal means small pages: slower, not wrong.
        let _ = map.advise(Advice::HugePage);
        Ok(Self {
            shared: Arc::default(),
            map,
            used: 0,
        })
    }

    /// Hands the weights out to the matrices that were packed here.
    ///
    /// # Errors
    /// [`ModelError::Memory`] when the memory cannot be made read-only.
    pub(crate) fn finish(self) -> Result<(), ModelError> {
        let map = self.map.make_read_only().map_err(ModelError::Memory)?;
        // Nobody else sets it.
        let _ = self.shared.set(map);
        Ok(())
    }
}

/// Fills a buffer with a matrix's bytes from an offset on.
pub(crate) type Read<'a> = dyn Fn(usize, &mut [u8]) -> Result<(), ModelError> + Sync + 'a;

/// A matrix as a file stores it: `[rows, columns]`, row by row.
pub(crate) struct Stored<'a> {
    pub(crate) dtype: GgmlDType,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// Where its bytes come from.
    pub(crate) read: &'a Read<'a>,
    /// All weights in f32, for formats that have no packed form.
    pub(crate) widen: &'a dyn Fn() -> Result<Vec<f32>, ModelError>,
}

/// The packed form of rows of this width.
fn packed_format(dtype: GgmlDType, columns: usize) -> Option<Format> {
    Format::of(dtype).filter(|_| columns.is_multiple_of(dtype.block_size()))
}

/// The bytes or numbers of a matrix.
enum Store {
    /// Panels of packed integers, within an arena.
    Packed(Format, Arc<OnceLock<Mmap>>, std::ops::Range<usize>),
    /// Panels of f32, `[panels, columns, PANEL]`: for files that are not quantised.
    Dense(Vec<f32>),
}

/// A matrix `[rows, columns]` by which activations are multiplied.
pub(crate) struct PackedMatrix {
    rows: usize,
    columns: usize,
    store: Store,
}

/// One panel, as a kernel sees it.
pub(super) enum Panel<'a> {
    Packed(Format, &'a [u8]),
    Dense(&'a [f32]),
}

impl PackedMatrix {
    /// Packs a matrix of a file, a panel at a time, so that no copy of the whole is ever held. The
    /// matrix can be used once the arena is finished.
    ///
    /// # Errors
    /// What reading reports, or [`ModelError::Kv`] when the arena was made for less.
    pub(crate) fn new(
        stored: &Stored<'_>,
        arena: &mut Arena,
        turn: &Turn<'_>,
    ) -> Result<Self, ModelError> {
        let Stored {
            dtype,
            rows,
            columns,
            ..
        } = *stored;
        let Some(format) = packed_format(dtype, columns) else {
            return Ok(Self {
                rows,
                columns,
                store: Store::Dense(dense_panels(&(stored.widen)()?, rows, columns)),
            });
        };
        let row_bytes = columns / dtype.block_size() * dtype.type_size();
        let panel_bytes = panel_bytes(format, columns);
        let start = arena.used;
        let end = start + rows.div_ceil(PANEL) * panel_bytes;
        let target = arena.map.get_mut(start..end).ok_or_else(|| {
            ModelError::Kv("the memory for the weights was measured for less".to_owned())
        })?;
        let failure = Mutex::new(None);
        {
            let parts: Vec<Mutex<&mut [u8]>> = target
                .chunks_mut(panel_bytes.max(1))
                .map(Mutex::new)
                .collect();
            turn.each(parts.len(), &|panel| {
                let first = panel * PANEL;
                let mut source = vec![0u8; PANEL.min(rows - first) * row_bytes];
                if let Err(error) = (stored.read)(first * row_bytes, &mut source) {
                    *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                    return;
                }
                let group = |row: usize, index: usize| match first + row < rows
                    && index * GROUP < columns
                {
                    true => read_group(dtype, &source[row * row_bytes..][..row_bytes], index),
                    false => Group::ZERO,
                };
                // Each panel is visited once, so the lock is free.
                if let Ok(mut panel) = parts[panel].lock() {
                    pack_panel(format, &mut panel, group);
                }
            });
        }
        if let Some(error) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(error);
        }
        arena.used = end;
        Ok(Self {
            rows,
            columns,
            store: Store::Packed(format, arena.shared.clone(), start..end),
        })
    }

    /// Rows: the width of a product.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Columns: the width of the activations.
    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    /// Bytes in memory.
    pub(crate) fn bytes(&self) -> usize {
        match &self.store {
            Store::Packed(_, _, range) => range.len(),
            Store::Dense(values) => size_of_val(values.as_slice()),
        }
    }

    /// Number of panels.
    pub(super) fn panels(&self) -> usize {
        self.rows.div_ceil(PANEL)
    }

    /// Bytes that a product reads of a panel.
    pub(super) fn panel_bytes(&self) -> usize {
        self.bytes() / self.panels().max(1)
    }

    /// A panel.
    pub(super) fn panel(&self, index: usize) -> Panel<'_> {
        match &self.store {
            Store::Packed(format, arena, range) => {
                let bytes = panel_bytes(*format, self.columns);
                let panels = arena.get().map_or(&[][..], |map| &map[range.clone()]);
                Panel::Packed(*format, &panels[index * bytes..][..bytes])
            }
            Store::Dense(values) => {
                let len = self.columns * PANEL;
                Panel::Dense(&values[index * len..][..len])
            }
        }
    }

    /// One row in f32, `[columns]`: an embedding.
    pub(crate) fn row(&self, row: usize, out: &mut [f32]) {
        let lane = row % PANEL;
        match self.panel(row / PANEL) {
            Panel::Dense(values) => {
                for (out, column) in out.iter_mut().zip(values.chunks_exact(PANEL)) {
                    *out = column[lane];
                }
            }
            Panel::Packed(format, panel) => {
                for (index, out) in out.chunks_mut(GROUP).enumerate() {
                    let group = unpack(format, panel, index, lane);
                    for (i, (out, q)) in out.iter_mut().zip(group.q).enumerate() {
                        *out = group.value(format.scales, i, q);
                    }
                }
            }
        }
    }
}

impl Group {
    /// The weight that an integer of the group stands for.
    fn value(&self, scales: Scales, index: usize, q: u8) -> f32 {
        let q = f32::from(q);
        let (scale, minimum) = (self.scale.to_f32(), self.minimum.to_f32());
        match scales {
            Scales::Plain { zero_log2 } => scale * (q - (1u32 << zero_log2) as f32),
            Scales::Minimum => scale * q + minimum,
            Scales::SuperMinimum => {
                scale * f32::from(self.small[0]) * q - minimum * f32::from(self.small[1])
            }
            Scales::SuperHalves => {
                let small = self.small[index / (GROUP / 2)].cast_signed();
                scale * f32::from(small) * (q - 32.0)
            }
        }
    }
}

/// Bytes of a panel of this many columns.
fn panel_bytes(format: Format, columns: usize) -> usize {
    (columns / GROUP).div_ceil(format.scales.groups()) * format.block_bytes()
}

fn dense_panels(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut panels = vec![0f32; rows.div_ceil(PANEL) * columns * PANEL];
    for (row, values) in values.chunks_exact(columns.max(1)).enumerate() {
        let panel = &mut panels[row / PANEL * columns * PANEL..];
        for (column, value) in values.iter().enumerate() {
            panel[column * PANEL + row % PANEL] = *value;
        }
    }
    panels
}

/// Byte of a group in which the integer of a row and column lies, in a layout of one byte an
/// integer: vectors of four columns of all rows.
const fn place(row: usize, column: usize) -> usize {
    (column / 4) * 4 * PANEL + row * 4 + column % 4
}

fn pack_panel(format: Format, panel: &mut [u8], group: impl Fn(usize, usize) -> Group) {
    let groups = format.scales.groups();
    for (b, block) in panel.chunks_exact_mut(format.block_bytes()).enumerate() {
        let (head, quants) = block.split_at_mut(format.scales.head_bytes());
        let parts = quants.chunks_exact_mut(format.bits.group_bytes());
        for (g, quants) in parts.enumerate() {
            for row in 0..PANEL {
                let group = group(row, b * groups + g);
                put_scales(format.scales, head, g, row, &group);
                for (column, q) in group.q.into_iter().enumerate() {
                    put_quant(format.bits, quants, place(row, column), q);
                }
            }
        }
    }
}

fn put_scales(scales: Scales, head: &mut [u8], g: usize, row: usize, group: &Group) {
    let mut put = |at: usize, value: f16| {
        head[at..at + 2].copy_from_slice(&value.to_le_bytes());
    };
    match scales {
        Scales::Plain { .. } => put((g * PANEL + row) * 2, group.scale),
        Scales::Minimum => {
            put((2 * g * PANEL + row) * 2, group.scale);
            put(((2 * g + 1) * PANEL + row) * 2, group.minimum);
        }
        Scales::SuperMinimum => {
            put(row * 2, group.scale);
            put((PANEL + row) * 2, group.minimum);
            let small = 4 * PANEL + 2 * g * PANEL + row;
            head[small] = group.small[0];
            head[small + PANEL] = group.small[1];
        }
        Scales::SuperHalves => {
            head[row * 4..row * 4 + 4].copy_from_slice(&group.scale.to_f32().to_le_bytes());
            let small = 4 * PANEL + 2 * g * PANEL + row;
            head[small] = group.small[0];
            head[small + PANEL] = group.small[1];
        }
    }
}

/// Bytes of the nibbles of a group: the first half of the places in low nibbles, the second in
/// high ones.
const NIBBLES: usize = PANEL * GROUP / 2;

fn put_quant(bits: Bits, quants: &mut [u8], place: usize, q: u8) {
    if bits == Bits::Eight {
        quants[place] = q;
        return;
    }
    quants[place % NIBBLES] |= (q & 15) << (place / NIBBLES * 4);
    match bits {
        Bits::Five => quants[NIBBLES + place / 8] |= (q >> 4 & 1) << (place % 8),
        // Vector `v` of eight keeps its upper bits at bit 2(v mod 4) of vector v/4.
        Bits::Six => {
            let (vector, byte) = (place / 64, place % 64);
            quants[NIBBLES + vector / 4 * 64 + byte] |= (q >> 4 & 3) << (vector % 4 * 2);
        }
        Bits::Four | Bits::Eight => {}
    }
}

fn get_quant(bits: Bits, quants: &[u8], place: usize) -> u8 {
    if bits == Bits::Eight {
        return quants[place];
    }
    let low = quants[place % NIBBLES] >> (place / NIBBLES * 4) & 15;
    match bits {
        Bits::Five => low | (quants[NIBBLES + place / 8] >> (place % 8) & 1) << 4,
        Bits::Six => {
            let (vector, byte) = (place / 64, place % 64);
            low | (quants[NIBBLES + vector / 4 * 64 + byte] >> (vector % 4 * 2) & 3) << 4
        }
        Bits::Four | Bits::Eight => low,
    }
}

/// One group of one row of a packed panel.
pub(super) fn unpack(format: Format, panel: &[u8], index: usize, lane: usize) -> Group {
    let groups = format.scales.groups();
    let block = &panel[index / groups * format.block_bytes()..][..format.block_bytes()];
    let (head, quants) = block.split_at(format.scales.head_bytes());
    let g = index % groups;
    let quants = &quants[g * format.bits.group_bytes()..][..format.bits.group_bytes()];
    let half = |at: usize| f16::from_le_bytes([head[at], head[at + 1]]);
    let small = 4 * PANEL + 2 * g * PANEL + lane;
    let mut group = Group {
        q: std::array::from_fn(|column| get_quant(format.bits, quants, place(lane, column))),
        ..Group::ZERO
    };
    match format.scales {
        Scales::Plain { .. } => group.scale = half((g * PANEL + lane) * 2),
        Scales::Minimum => {
            group.scale = half((2 * g * PANEL + lane) * 2);
            group.minimum = half(((2 * g + 1) * PANEL + lane) * 2);
        }
        Scales::SuperMinimum => {
            group.scale = half(lane * 2);
            group.minimum = half((PANEL + lane) * 2);
            group.small = [head[small], head[small + PANEL]];
        }
        Scales::SuperHalves => {
            let at = lane * 4;
            let scale = f32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
            group.scale = f16::from_f32(scale);
            group.small = [head[small], head[small + PANEL]];
        }
    }
    group
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::kernel::pool::pool;
    use candle_core::quantized::QTensor;
    use candle_core::{Device, Tensor};

    /// Every format that packs.
    pub(in crate::kernel) const FORMATS: [GgmlDType; 8] = [
        GgmlDType::Q4_0,
        GgmlDType::Q4_1,
        GgmlDType::Q5_0,
        GgmlDType::Q5_1,
        GgmlDType::Q8_0,
        GgmlDType::Q4K,
        GgmlDType::Q5K,
        GgmlDType::Q6K,
    ];

    pub(in crate::kernel) fn matrix(rows: usize, columns: usize, dtype: GgmlDType) -> QTensor {
        let values: Vec<f32> = (0..rows * columns)
            .map(|i| ((i * 7919 % 1013) as f32 / 506.0 - 1.0) * (1.0 + (i / columns % 5) as f32))
            .collect();
        let tensor = Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap();
        QTensor::quantize(&tensor, dtype).unwrap()
    }

    pub(in crate::kernel) fn packed(weight: &QTensor) -> PackedMatrix {
        let (rows, columns) = weight.shape().dims2().unwrap();
        let (dtype, data) = (weight.dtype(), weight.data().unwrap());
        let mut arena = Arena::new([(dtype, rows, columns)].into_iter()).unwrap();
        let stored = Stored {
            dtype,
            rows,
            columns,
            read: &|offset, out| {
                out.copy_from_slice(&data[offset..offset + out.len()]);
                Ok(())
            },
            widen: &|| {
                let dense = weight.dequantize(&Device::Cpu)?;
                Ok(dense.flatten_all()?.to_vec1()?)
            },
        };
        let matrix = PackedMatrix::new(&stored, &mut arena, &pool().turn()).unwrap();
        arena.finish().unwrap();
        matrix
    }

    #[test]
    fn unpacking_gives_the_weights_of_the_file() {
        for dtype in FORMATS.into_iter().chain([GgmlDType::F32, GgmlDType::F16]) {
            // An odd number of rows, and of groups where the format allows it.
            let columns = dtype.block_size().max(GROUP) * 3;
            let weight = matrix(21, columns, dtype);
            let expected: Vec<f32> = weight
                .dequantize(&Device::Cpu)
                .unwrap()
                .flatten_all()
                .unwrap()
                .to_vec1()
                .unwrap();
            let packed = packed(&weight);
            assert_eq!(Format::of(dtype).is_some(), FORMATS.contains(&dtype));
            let mut row = vec![0f32; columns];
            for (r, expected) in expected.chunks_exact(columns).enumerate() {
                packed.row(r, &mut row);
                for (found, expected) in row.iter().zip(expected) {
                    assert!(
                        (found - expected).abs() <= 1e-6 * expected.abs().max(1e-3),
                        "{dtype:?}: {found} against {expected}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_packed_matrix_is_hardly_larger_than_its_file() {
        for (dtype, limit) in [
            (GgmlDType::Q4K, 1.03),
            (GgmlDType::Q6K, 1.02),
            (GgmlDType::Q5_0, 1.0),
            (GgmlDType::Q8_0, 1.0),
            (GgmlDType::Q4_1, 1.0),
        ] {
            let weight = matrix(64, 1024, dtype);
            let file = weight.data().unwrap().len();
            let packed = packed(&weight);
            let ratio = packed.bytes() as f64 / file as f64;
            assert!(ratio <= limit, "{dtype:?}: {ratio}");
        }
    }
}
