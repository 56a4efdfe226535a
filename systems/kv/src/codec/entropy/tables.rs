//! `tables`: static entropy coding with the tile's own distributions, sent in front: one for
//! each channel, or for each class of channels whose symbols are about as large.
//!
//! Coder: asymmetric numeral systems with ranges (Duda, arXiv 1311.2540), in the form of
//! Giesen's "Interleaved entropy coders" (arXiv 1402.3392): four states in turn, so that four
//! symbols are on their way at a time. `CacheGen`'s released code sends distributions per layer
//! and channel.

use serde::{Deserialize, Serialize};

use super::{Plane, SymbolCoder, fits};
use crate::codec::CodecError;
use crate::codec::frame::{Reader, put_number};

/// Codes the symbols with distributions that are sent, as fractions of 4096.
///
/// `classes = 0` gives every channel its own distribution, otherwise channels are sorted by their
/// mean magnitude into that many classes of equal number (at most 16). Decodes fastest of the
/// entropy coders, but the tables are a large part of a short tile: with 256 tokens a
/// distribution per channel costs more than it saves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Fields", into = "Fields")]
pub struct Tables {
    pub(super) classes: usize,
}

#[derive(Serialize, Deserialize)]
#[serde(rename = "Tables", deny_unknown_fields)]
struct Fields {
    #[serde(default = "default_classes")]
    classes: usize,
}

const fn default_classes() -> usize {
    8
}

impl TryFrom<Fields> for Tables {
    type Error = CodecError;

    fn try_from(fields: Fields) -> Result<Self, CodecError> {
        Self::new(fields.classes)
    }
}

impl From<Tables> for Fields {
    fn from(stage: Tables) -> Self {
        let Tables { classes } = stage;
        Self { classes }
    }
}

impl Tables {
    pub(in crate::codec) const NAME: &str = "tables";
    /// A distribution for each channel.
    pub const PER_CHANNEL: Self = Self { classes: 0 };

    /// Distributions for so many classes of channels, 0 for one per channel.
    ///
    /// # Errors
    /// [`CodecError::Parameter`] for more than 16.
    pub fn new(classes: usize) -> Result<Self, CodecError> {
        if classes <= 16 {
            return Ok(Self { classes });
        }
        Err(CodecError::Parameter {
            stage: Self::NAME,
            parameter: "classes",
            value: classes,
            allowed: "0 to 16",
        })
    }

    /// Reads the parameters of an id, `c8`.
    pub(in crate::codec) fn parse(text: &str) -> Option<Self> {
        Self::new(text.strip_prefix('c')?.parse().ok()?).ok()
    }

    pub(in crate::codec) fn id(&self) -> String {
        format!("{}-c{}", Self::NAME, self.classes)
    }
}

/// Probabilities are fractions of `1 << BITS`.
const BITS: u32 = 12;
const TOTAL: u32 = 1 << BITS;
/// States are at least this, and are refilled by two bytes at a time.
const LOWEST: u32 = 1 << 16;
/// Slots that a search begins with at a time.
const COARSE: usize = 64;
/// States.
const LANES: usize = 4;
/// Symbols from `-DIRECT` to `DIRECT - 1` have entries; others are the entry `ESCAPE`, and their
/// value stands in 15 bits behind the states' bytes.
const DIRECT: i16 = 127;
const ESCAPE: usize = 254;

/// The entry of a symbol: 0 for 0, then the small magnitudes first.
const fn entry(symbol: i16) -> usize {
    if symbol >= DIRECT || symbol < -DIRECT {
        ESCAPE
    } else {
        (symbol << 1 ^ symbol >> 15) as usize
    }
}

/// The symbol of an entry other than [`ESCAPE`].
const fn symbol(entry: usize) -> i16 {
    let entry = entry as i16;
    entry >> 1 ^ -(entry & 1)
}

/// One distribution: how often each entry occurs, of [`TOTAL`], and the sum of those before it.
#[derive(Debug, Clone, Default)]
struct Table {
    frequency: Vec<u16>,
    start: Vec<u16>,
}

impl Table {
    /// Scales counts to [`TOTAL`]; every entry that occurs gets at least 1.
    fn from_counts(counts: &[u32]) -> Self {
        let total: u64 = counts.iter().map(|count| u64::from(*count)).sum();
        let len = counts
            .iter()
            .rposition(|count| *count > 0)
            .map_or(0, |last| last + 1);
        let mut frequency: Vec<u16> = counts[..len]
            .iter()
            .map(|count| match count {
                0 => 0,
                _ => ((u64::from(*count) << BITS) / total).max(1) as u16,
            })
            .collect();
        let sum: u32 = frequency.iter().map(|f| u32::from(*f)).sum();
        // What rounding left over or took too much is put right at the likeliest entries, where
        // it costs least. There are at most 255 entries, far fewer than TOTAL.
        let mut off = TOTAL.cast_signed() - sum.cast_signed();
        while off != 0 && !frequency.is_empty() {
            let largest = (0..len).max_by_key(|i| frequency[*i]).unwrap_or(0);
            let own = i32::from(frequency[largest]);
            let change = off.max(1 - own).max(-(own / 2).max(1));
            frequency[largest] = (own + change) as u16;
            off -= change;
        }
        Self::with_starts(frequency)
    }

    fn with_starts(frequency: Vec<u16>) -> Self {
        let start = frequency
            .iter()
            .scan(0_u16, |sum, f| {
                let before = *sum;
                *sum += f;
                Some(before)
            })
            .collect();
        Self { frequency, start }
    }

    fn write(&self, out: &mut Vec<u8>) {
        put_number(out, self.frequency.len());
        for frequency in &self.frequency {
            put_number(out, usize::from(*frequency));
        }
    }

    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let len = reader.number().filter(|len| *len <= ESCAPE + 1)?;
        let mut frequency = Vec::with_capacity(len);
        let mut sum = 0;
        for _ in 0..len {
            let number = reader.number().filter(|number| *number <= TOTAL as usize)?;
            sum += number;
            frequency.push(number as u16);
        }
        // A class none of whose channels is coded has an empty table.
        (sum == TOTAL as usize || len == 0).then(|| Self::with_starts(frequency))
    }

    /// The entry of the first slot of each [`COARSE`]; none for an empty table.
    fn coarse(&self) -> Vec<u8> {
        let entry_at = |slot: usize| {
            // Entries that do not occur start where the next one does, so the last is taken.
            let before = self
                .start
                .partition_point(|start| usize::from(*start) <= slot);
            before.saturating_sub(1) as u8
        };
        match self.start.is_empty() {
            true => Vec::new(),
            false => (0..TOTAL as usize).step_by(COARSE).map(entry_at).collect(),
        }
    }

    /// The words of all [`TOTAL`] slots; none for an empty table.
    fn slots(&self) -> Vec<u32> {
        let mut slots = Vec::with_capacity(TOTAL as usize);
        for (entry, frequency) in self.frequency.iter().enumerate() {
            slots.extend((0..*frequency).map(|offset| slot_word(entry, *frequency, offset)));
        }
        slots
    }

    /// The word of one slot, by search from where `coarse` says; `None` in an empty table.
    #[inline]
    fn search(&self, coarse: &[u8], slot: u32) -> Option<u32> {
        let slot = slot as u16;
        let mut entry = usize::from(*coarse.get(slot as usize / COARSE)?);
        while self.start.get(entry + 1).is_some_and(|next| *next <= slot) {
            entry += 1;
        }
        let (frequency, start) = (*self.frequency.get(entry)?, *self.start.get(entry)?);
        (frequency > 0).then(|| slot_word(entry, frequency, slot - start))
    }
}

#[derive(Debug, Clone, Copy)]
pub(in crate::codec) struct TablesCoder {
    stage: Tables,
}

impl TablesCoder {
    pub(in crate::codec) const fn new(stage: Tables) -> Self {
        Self { stage }
    }

    /// The class of every channel, by rank of its mean magnitude.
    fn classes(&self, plane: &Plane<'_>, symbols: &[i16]) -> Vec<u8> {
        let head_dim = plane.shape.head_dim();
        let mut sums = vec![0_u64; plane.widths.len()];
        for (head, symbols) in symbols.chunks_exact(plane.head_run()).enumerate() {
            for row in symbols.chunks_exact(head_dim) {
                let sums = &mut sums[head * head_dim..][..head_dim];
                for (sum, symbol) in sums.iter_mut().zip(row) {
                    *sum += u64::from(symbol.unsigned_abs());
                }
            }
        }
        let mut order: Vec<usize> = (0..sums.len()).filter(|i| plane.widths[*i] > 0).collect();
        order.sort_by_key(|channel| sums[*channel]);
        let mut classes = vec![0; sums.len()];
        for (rank, channel) in order.iter().enumerate() {
            classes[*channel] = (rank * self.stage.classes / order.len()) as u8;
        }
        classes
    }

    fn number_of_tables(&self, plane: &Plane<'_>) -> usize {
        match self.stage.classes {
            0 => plane.widths.len(),
            classes => classes,
        }
    }

    /// The table of every channel.
    fn table_of(&self, plane: &Plane<'_>, classes: &[u8]) -> Vec<usize> {
        match self.stage.classes {
            0 => (0..plane.widths.len()).collect(),
            _ => classes.iter().map(|class| usize::from(*class)).collect(),
        }
    }
}

/// A coded channel of a head: where it stands in a row, its table and its width.
type Column = (usize, usize, u8);

/// The coded channels of a head.
fn columns(plane: &Plane<'_>, head: usize, table_of: &[usize]) -> Vec<Column> {
    let tables = &table_of[head * plane.shape.head_dim()..];
    plane
        .head_widths(head)
        .iter()
        .zip(tables)
        .enumerate()
        .filter(|(_, (width, _))| **width > 0)
        .map(|(channel, (width, table))| (channel, *table, *width))
        .collect()
}

/// What a slot says, in one word: an entry, its frequency less one, and how far the slot is from
/// its start.
const fn slot_word(entry: usize, frequency: u16, offset: u16) -> u32 {
    (entry as u32) << 24 | (frequency as u32 - 1) << 12 | offset as u32
}

impl SymbolCoder for TablesCoder {
    fn name(&self) -> &'static str {
        Tables::NAME
    }

    fn encode(&self, plane: &Plane<'_>, symbols: &[i16], out: &mut Vec<u8>) {
        let classes = match self.stage.classes {
            0 => Vec::new(),
            _ => self.classes(plane, symbols),
        };
        for pair in classes.chunks(2) {
            out.push(pair[0] | pair.get(1).copied().unwrap_or(0) << 4);
        }
        let table_of = self.table_of(plane, &classes);
        let mut counts = vec![[0_u32; ESCAPE + 1]; self.number_of_tables(plane)];
        let mut order = Vec::with_capacity(symbols.len());
        let mut escaped = Vec::new();
        for (head, symbols) in symbols.chunks_exact(plane.head_run()).enumerate() {
            let columns = columns(plane, head, &table_of);
            for row in symbols.chunks_exact(plane.shape.head_dim()) {
                for (channel, table, _) in &columns {
                    let entry = entry(row[*channel]);
                    counts[*table][entry] += 1;
                    order.push((*table as u32, entry as u32));
                    if entry == ESCAPE {
                        escaped.extend(row[*channel].to_le_bytes());
                    }
                }
            }
        }
        let tables: Vec<Table> = counts
            .iter()
            .map(|counts| Table::from_counts(counts))
            .collect();
        tables.iter().for_each(|table| table.write(out));
        put_number(out, escaped.len() / 2);
        out.extend(escaped);
        // The decoder reads forwards, so the encoder works backwards.
        let mut states = [LOWEST; LANES];
        let mut reversed: Vec<u16> = Vec::with_capacity(order.len() / 8);
        for (place, (table, entry)) in order.iter().enumerate().rev() {
            let state = &mut states[place % LANES];
            let table = &tables[*table as usize];
            let frequency = u32::from(table.frequency[*entry as usize]);
            if u64::from(*state) >= u64::from(frequency) << (32 - BITS) {
                reversed.push(*state as u16);
                *state >>= 16;
            }
            *state = ((*state / frequency) << BITS)
                + *state % frequency
                + u32::from(table.start[*entry as usize]);
        }
        for state in states {
            out.extend(state.to_le_bytes());
        }
        out.extend(reversed.iter().rev().flat_map(|word| word.to_le_bytes()));
    }

    fn decode(&self, plane: &Plane<'_>, bytes: &[u8], symbols: &mut [i16]) -> Option<()> {
        let mut reader = Reader::new(bytes);
        let channels = plane.widths.len();
        let mut classes = Vec::new();
        if self.stage.classes > 0 {
            let packed = reader.take(channels.div_ceil(2))?;
            classes.extend(packed.iter().flat_map(|byte| [byte & 0x0f, byte >> 4]));
            let beyond = classes.drain(channels..).any(|class| class > 0);
            let unknown = |class: &u8| usize::from(*class) >= self.stage.classes;
            if beyond || classes.iter().any(unknown) {
                return None;
            }
        }
        let tables = (0..self.number_of_tables(plane))
            .map(|_| Table::read(&mut reader))
            .collect::<Option<Vec<_>>>()?;
        let escaped = reader.number()?.checked_mul(2)?;
        let mut escaped = reader.take(escaped)?.as_chunks::<2>().0.iter();
        // Slots find an entry at once, but take 16 KiB a table: many tables are searched
        // instead, so that memory follows from the shape and not from a hostile payload.
        let slots: Vec<Vec<u32>> = match self.stage.classes {
            0 => Vec::new(),
            _ => tables.iter().map(Table::slots).collect(),
        };
        let coarse: Vec<Vec<u8>> = match self.stage.classes {
            0 => tables.iter().map(Table::coarse).collect(),
            _ => Vec::new(),
        };
        let table_of = self.table_of(plane, &classes);
        let mut states = [0; LANES];
        for state in &mut states {
            *state = u32::from_le_bytes(*reader.take(4)?.first_chunk()?);
            if *state < LOWEST {
                return None;
            }
        }
        let (words, odd) = reader.rest().as_chunks::<2>();
        let mut next = 0;
        for (head, symbols) in symbols.chunks_exact_mut(plane.head_run()).enumerate() {
            let columns = columns(plane, head, &table_of);
            for row in symbols.chunks_exact_mut(plane.shape.head_dim()) {
                for (channel, table, width) in &columns {
                    let [state, second, third, fourth] = states;
                    let slot = state & (TOTAL - 1);
                    let word = match slots.get(*table) {
                        Some(slots) => *slots.get(slot as usize)?,
                        None => tables[*table].search(&coarse[*table], slot)?,
                    };
                    let (found, offset) = ((word >> 24) as usize, word & (TOTAL - 1));
                    let frequency = (word >> 12 & (TOTAL - 1)) + 1;
                    let left = frequency * (state >> BITS) + offset;
                    // Behind the last word come zeros, which is noticed in the end.
                    let word = words.get(next).map_or(0, |word| u16::from_le_bytes(*word));
                    let refill = left < LOWEST;
                    let state = if refill {
                        left << 16 | u32::from(word)
                    } else {
                        left
                    };
                    states = [second, third, fourth, state];
                    next += usize::from(refill);
                    let number = match found {
                        ESCAPE => i16::from_le_bytes(*escaped.next()?),
                        _ => symbol(found),
                    };
                    let one_form = found != ESCAPE || entry(number) == ESCAPE;
                    if !one_form || !fits(i32::from(number), *width) {
                        return None;
                    }
                    row[*channel] = number;
                }
            }
        }
        // An encoder starts from the lowest states and leaves no byte over.
        let done = states == [LOWEST; LANES] && next == words.len() && odd.is_empty();
        (done && escaped.next().is_none()).then_some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_invert() {
        for number in -DIRECT..DIRECT {
            assert_eq!(symbol(entry(number)), number);
            assert!(entry(number) < ESCAPE);
        }
        assert_eq!(
            (entry(127), entry(-128), entry(i16::MIN)),
            (ESCAPE, ESCAPE, ESCAPE)
        );
    }

    #[test]
    fn frequencies_add_up_and_keep_what_is_rare() {
        for counts in [
            vec![1],
            vec![1_000_000, 1],
            vec![1; 255],
            vec![5, 0, 7, 1_000],
        ] {
            let table = Table::from_counts(&counts);
            let sum: u32 = table.frequency.iter().map(|f| u32::from(*f)).sum();
            assert_eq!(sum, TOTAL);
            for (count, frequency) in counts.iter().zip(&table.frequency) {
                assert_eq!(*count > 0, *frequency > 0);
            }
        }
        assert!(Table::from_counts(&[0, 0]).frequency.is_empty());
    }
}
