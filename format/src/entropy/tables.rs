//! Frozen frequency tables: how a trained bundle says what its symbols cost.
//!
//! A table covers the symbols `min ..= max` and one escape, which stands for everything outside and is followed by
//! a sign and an Exp-Golomb code in plain bits. Frequencies are whole numbers with the sum 65536, so that no
//! machine rounds them differently.

use std::sync::OnceLock;

use super::{EntropyError, RangeDecoder, RangeEncoder};

/// Symbols lie in `-SYMBOL_LIMIT ..= SYMBOL_LIMIT`.
pub const SYMBOL_LIMIT: i32 = 1 << 20;
/// Most tables in a set: a scale index has 6 bits.
pub const MAX_TABLES: usize = 64;
/// Most symbols of one table, the escape not counted.
pub const MAX_SYMBOLS: usize = 4096;
/// Bytes of the smallest set: the count, and one table of one symbol.
pub const MIN_SET_BYTES: usize = 1 + 4 + 2;

/// Frequencies of a table add up to 2^16.
const TOTAL_BITS: u32 = 16;
const TOTAL: u32 = 1 << TOTAL_BITS;
/// Bits of a cumulative value that choose where the search for its symbol starts.
const LOOKUP_BITS: u32 = 8;
const BUCKETS: usize = 1 << LOOKUP_BITS;
/// Most bits of an Exp-Golomb suffix: values beyond the table are below 2^22.
const MAX_SUFFIX_BITS: u32 = 21;

/// The frequencies of one distribution of symbols.
#[derive(Debug, Clone)]
pub struct CdfTable {
    min: i32,
    /// What 0 has: its cumulative value and its frequency, 0 if it needs an escape.
    zero: [u32; 2],
    /// `cumulative[i]` is the sum of the frequencies before entry `i`; the escape is the last entry, 65536 follows.
    cumulative: Box<[u32]>,
    /// For each value of the top bits: the entry that holds the first cumulative value with these top bits.
    lookup: Box<[u16; BUCKETS]>,
    /// Cost of each entry in 1/256 bit, once an encoder has asked for one.
    cost: OnceLock<Box<[u16]>>,
}

/// The rest follows from these.
impl PartialEq for CdfTable {
    fn eq(&self, other: &Self) -> bool {
        (self.min, &self.cumulative) == (other.min, &other.cumulative)
    }
}

impl Eq for CdfTable {}

impl CdfTable {
    /// A table for the symbols `min .. min + frequencies.len()`; the escape gets what is missing to 65536.
    ///
    /// # Errors
    ///
    /// [`EntropyError::InvalidTable`] where a frequency is 0, nothing is left for the escape, or the number of
    /// symbols or their range is beyond the limits.
    pub fn new(min: i32, frequencies: &[u16]) -> Result<Self, EntropyError> {
        let invalid = |reason| EntropyError::InvalidTable { table: 0, reason };
        if frequencies.is_empty() || frequencies.len() > MAX_SYMBOLS {
            return Err(invalid("has no symbol, or more than 4096"));
        }
        if i16::try_from(min).is_err() {
            return Err(invalid("has a first symbol beyond 16 bits"));
        }
        let mut cumulative = Vec::with_capacity(frequencies.len() + 2);
        let mut sum = 0;
        for &frequency in frequencies {
            if frequency == 0 {
                return Err(invalid("has a symbol of frequency 0"));
            }
            cumulative.push(sum);
            sum += u32::from(frequency);
        }
        if sum >= TOTAL {
            return Err(invalid("leaves no frequency for the escape"));
        }
        cumulative.extend([sum, TOTAL]);

        let mut lookup = Box::new([0; BUCKETS]);
        let mut entry = 0;
        for (bucket, start) in lookup.iter_mut().enumerate() {
            let first = (bucket as u32) << (TOTAL_BITS - LOOKUP_BITS);
            while cumulative[entry + 1] <= first {
                entry += 1;
            }
            *start = entry as u16;
        }
        let zero = match usize::try_from(-min) {
            Ok(entry) if entry < frequencies.len() => [cumulative[entry], frequencies[entry].into()],
            _ => [0; 2],
        };
        Ok(Self { min, zero, cumulative: cumulative.into_boxed_slice(), lookup, cost: OnceLock::new() })
    }

    /// The smallest symbol that needs no escape.
    #[must_use]
    pub fn min(&self) -> i32 {
        self.min
    }

    /// The largest symbol that needs no escape.
    #[must_use]
    pub fn max(&self) -> i32 {
        self.min + self.escape() as i32 - 1
    }

    /// What a symbol costs, in 1/256 bit. For encoders that choose between symbols.
    #[inline]
    #[must_use]
    pub fn cost(&self, symbol: i32) -> u32 {
        let of_entry = |pair: &[u32]| cost_of_frequency(pair[1] - pair[0]);
        let cost = self.cost.get_or_init(|| self.cumulative.windows(2).map(of_entry).collect());
        let entry = i64::from(symbol) - i64::from(self.min);
        match usize::try_from(entry) {
            Ok(entry) if entry < self.escape() => u32::from(cost[entry]),
            _ => {
                let (_, excess) = self.split_escaped(symbol);
                let suffix_bits = (excess + 1).ilog2();
                u32::from(cost[self.escape()]) + 256 * (2 + 2 * suffix_bits)
            }
        }
    }

    fn escape(&self) -> usize {
        self.cumulative.len() - 2
    }

    /// A symbol outside the table: whether it is below, and how far from the first one outside.
    fn split_escaped(&self, symbol: i32) -> (bool, u32) {
        if symbol < self.min {
            (true, (i64::from(self.min) - 1 - i64::from(symbol)) as u32)
        } else {
            (false, (i64::from(symbol) - i64::from(self.max()) - 1) as u32)
        }
    }

    #[cold]
    fn encode_escaped(&self, encoder: &mut RangeEncoder, symbol: i32) -> Result<(), EntropyError> {
        if !(-SYMBOL_LIMIT..=SYMBOL_LIMIT).contains(&symbol) {
            return Err(EntropyError::SymbolRange { symbol });
        }
        let escape = self.escape();
        encoder.encode(self.cumulative[escape], TOTAL - self.cumulative[escape], TOTAL_BITS);
        let (below, excess) = self.split_escaped(symbol);
        encoder.encode_bypass(u32::from(below), 1);
        let suffix_bits = (excess + 1).ilog2();
        for _ in 0..suffix_bits {
            encoder.encode_bypass(0, 1);
        }
        encoder.encode_bypass(1, 1);
        encoder.encode_bypass(excess + 1 - (1 << suffix_bits), suffix_bits);
        Ok(())
    }

    #[cold]
    fn decode_escaped(&self, decoder: &mut RangeDecoder<'_>) -> i32 {
        let below = decoder.decode_bypass(1) == 1;
        let mut suffix_bits = 0;
        while decoder.decode_bypass(1) == 0 {
            suffix_bits += 1;
            if suffix_bits > MAX_SUFFIX_BITS {
                decoder.mark_corrupt();
                return 0;
            }
        }
        let excess = ((1 << suffix_bits) - 1 + decoder.decode_bypass(suffix_bits)) as i32;
        let symbol = if below { self.min - 1 - excess } else { self.max() + 1 + excess };
        if !(-SYMBOL_LIMIT..=SYMBOL_LIMIT).contains(&symbol) {
            decoder.mark_corrupt();
            return 0;
        }
        symbol
    }
}

impl RangeEncoder {
    /// Encodes one symbol with a table.
    ///
    /// # Errors
    ///
    /// [`EntropyError::SymbolRange`] for a symbol beyond +-2^20; nothing is written then.
    #[inline]
    pub fn encode_symbol(&mut self, table: &CdfTable, symbol: i32) -> Result<(), EntropyError> {
        let entry = symbol.wrapping_sub(table.min) as u32 as usize;
        if entry >= table.escape() {
            return table.encode_escaped(self, symbol);
        }
        let start = table.cumulative[entry];
        self.encode(start, table.cumulative[entry + 1] - start, TOTAL_BITS);
        Ok(())
    }
}

impl RangeDecoder<'_> {
    /// Decodes one symbol with the table it was encoded with.
    ///
    /// Damaged data gives meaningless symbols within +-2^20; an impossible escape makes
    /// [`finish`](RangeDecoder::finish) fail.
    #[inline]
    #[must_use]
    pub fn decode_symbol(&mut self, table: &CdfTable) -> i32 {
        // Most are, and it takes no division to see.
        let [start, frequency] = table.zero;
        if self.try_consume(start, frequency, TOTAL_BITS) {
            return 0;
        }
        self.decode_other(table)
    }

    #[inline]
    fn decode_other(&mut self, table: &CdfTable) -> i32 {
        let value = self.decode_cumulative(TOTAL_BITS);
        let mut entry =
            usize::from(table.lookup[(value >> (TOTAL_BITS - LOOKUP_BITS)) as usize & (BUCKETS - 1)]);
        let mut start = table.cumulative[entry];
        let mut end = table.cumulative[entry + 1];
        while end <= value {
            entry += 1;
            start = end;
            end = table.cumulative[entry + 1];
        }
        self.consume(start, end - start);
        if entry == table.escape() {
            // On a copy: what a call gets the address of cannot stay in registers.
            let mut decoder = self.clone();
            let symbol = table.decode_escaped(&mut decoder);
            *self = decoder;
            return symbol;
        }
        table.min + entry as i32
    }
}

/// The tables of a bundle, chosen symbol by symbol with a scale index.
///
/// Layout, little endian: `count: u8` (1 to 64), then for each table `min: i16`, `symbols: u16` (1 to 4096) and
/// `symbols` frequencies `u16`, each at least 1, with a sum of at most 65535; the escape has the rest of 65536.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CdfSet {
    tables: Vec<CdfTable>,
}

impl CdfSet {
    /// A set of 1 to 64 tables.
    ///
    /// # Errors
    ///
    /// [`EntropyError::InvalidTable`] for another number of tables.
    pub fn new(tables: Vec<CdfTable>) -> Result<Self, EntropyError> {
        if tables.is_empty() || tables.len() > MAX_TABLES {
            return Err(EntropyError::InvalidTable {
                table: tables.len(),
                reason: "a set has 1 to 64 tables",
            });
        }
        Ok(Self { tables })
    }

    /// Reads a set; `bytes` holds it and nothing else.
    ///
    /// # Errors
    ///
    /// [`EntropyError::InvalidTable`], with the number of the table.
    pub fn parse(bytes: &[u8]) -> Result<Self, EntropyError> {
        let (&count, mut rest) =
            bytes.split_first().ok_or(EntropyError::InvalidTable { table: 0, reason: "the set is empty" })?;
        // Enough for the tables that the bytes can hold, whatever the count says.
        let mut tables = Vec::with_capacity(usize::from(count).min(bytes.len() / (MIN_SET_BYTES - 1)));
        for index in 0..usize::from(count) {
            let cut = EntropyError::InvalidTable { table: index, reason: "is cut short" };
            let (&[m0, m1, n0, n1], after) = rest.split_first_chunk::<4>().ok_or(cut.clone())?;
            let min = i16::from_le_bytes([m0, m1]);
            let symbols = usize::from(u16::from_le_bytes([n0, n1]));
            let (frequencies, after) = after.split_at_checked(2 * symbols).ok_or(cut)?;
            let frequencies: Vec<u16> =
                frequencies.as_chunks().0.iter().map(|&pair| u16::from_le_bytes(pair)).collect();
            tables.push(CdfTable::new(i32::from(min), &frequencies).map_err(|error| match error {
                EntropyError::InvalidTable { reason, .. } => {
                    EntropyError::InvalidTable { table: index, reason }
                }
                other => other,
            })?);
            rest = after;
        }
        if !rest.is_empty() {
            let table = usize::from(count);
            return Err(EntropyError::InvalidTable { table, reason: "bytes follow the last table" });
        }
        Self::new(tables)
    }

    /// Writes the set in the layout that [`parse`](Self::parse) reads.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![self.tables.len() as u8];
        for table in &self.tables {
            bytes.extend((table.min as i16).to_le_bytes());
            bytes.extend((table.escape() as u16).to_le_bytes());
            for pair in table.cumulative[..=table.escape()].windows(2) {
                bytes.extend(((pair[1] - pair[0]) as u16).to_le_bytes());
            }
        }
        bytes
    }

    /// The tables; a scale index is a position in here.
    #[must_use]
    pub fn tables(&self) -> &[CdfTable] {
        &self.tables
    }
}

impl std::ops::Index<usize> for CdfSet {
    type Output = CdfTable;

    #[inline]
    fn index(&self, scale_index: usize) -> &CdfTable {
        &self.tables[scale_index]
    }
}

/// -log2(frequency / 65536) in 1/256 bit, rounded down, for a frequency of 1 to 65536.
fn cost_of_frequency(frequency: u32) -> u16 {
    // The fraction of the logarithm one bit at a time: squaring a number doubles its logarithm.
    let exponent = frequency.ilog2();
    let mut mantissa = u64::from(frequency) << (31 - exponent);
    let mut logarithm = exponent;
    for _ in 0..8 {
        mantissa = (mantissa * mantissa) >> 31;
        let bit = (mantissa >> 32) as u32;
        mantissa >>= bit;
        logarithm = logarithm << 1 | bit;
    }
    (16 * 256 - logarithm) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn table() -> impl Strategy<Value = CdfTable> {
        (-300i32..300, proptest::collection::vec(1u32..2000, 1..200), 1u32..500).prop_map(
            |(min, weights, escape)| {
                let total: u32 = weights.iter().sum::<u32>() + escape;
                let room = TOTAL - 1 - weights.len() as u32;
                let frequencies: Vec<u16> = weights
                    .iter()
                    .map(|&w| (1 + u64::from(w) * u64::from(room) / u64::from(total)) as u16)
                    .collect();
                CdfTable::new(min, &frequencies).unwrap()
            },
        )
    }

    proptest! {
        #[test]
        fn symbols_come_back_and_cost_what_was_said(
            tables in proptest::collection::vec(table(), 1..8),
            symbols in proptest::collection::vec(
                (0usize..8, prop_oneof![4 => -400i32..400, 1 => -SYMBOL_LIMIT..=SYMBOL_LIMIT]), 0..400),
        ) {
            let set = CdfSet::parse(&CdfSet::new(tables.clone()).unwrap().to_bytes()).unwrap();
            prop_assert_eq!(set.tables(), &tables[..]);
            let mut encoder = RangeEncoder::new();
            let mut cost = 0;
            for &(index, symbol) in &symbols {
                let table = &set[index % tables.len()];
                encoder.encode_symbol(table, symbol).unwrap();
                cost += table.cost(symbol);
            }
            let bytes = encoder.finish();
            let bits = 256 * 8 * bytes.len() as i64;
            prop_assert!((bits - i64::from(cost)).abs() <= 256 * 40 + i64::from(cost) / 200);
            let mut decoder = RangeDecoder::new(&bytes);
            for &(index, symbol) in &symbols {
                prop_assert_eq!(decoder.decode_symbol(&set[index % tables.len()]), symbol);
            }
            prop_assert_eq!(decoder.finish(), Ok(()));
        }

        #[test]
        fn garbage_decodes_to_symbols_in_range(
            table in table(), bytes in proptest::collection::vec(any::<u8>(), 0..60),
        ) {
            let mut decoder = RangeDecoder::new(&bytes);
            for _ in 0..200 {
                let symbol = decoder.decode_symbol(&table);
                prop_assert!((-SYMBOL_LIMIT..=SYMBOL_LIMIT).contains(&symbol));
            }
            _ = decoder.finish();
        }

        #[test]
        fn garbage_is_never_a_panic_when_parsed(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            if let Ok(set) = CdfSet::parse(&bytes) {
                prop_assert_eq!(set.to_bytes(), bytes);
            }
        }

        #[test]
        fn every_prefix_of_a_set_is_an_error(table in table()) {
            let bytes = CdfSet::new(vec![table]).unwrap().to_bytes();
            for length in 0..bytes.len() {
                prop_assert!(CdfSet::parse(&bytes[..length]).is_err());
            }
        }
    }

    #[test]
    fn bad_tables_are_refused() {
        assert!(CdfTable::new(0, &[]).is_err());
        assert!(CdfTable::new(0, &[1, 0, 1]).is_err());
        assert!(CdfTable::new(0, &[65535, 1]).is_err());
        assert!(CdfTable::new(1 << 15, &[1]).is_err());
        assert!(CdfTable::new(0, &[1; MAX_SYMBOLS + 1]).is_err());
        assert!(CdfTable::new(0, &[65535]).is_ok());
        assert!(CdfSet::new(Vec::new()).is_err());
    }

    #[test]
    fn a_symbol_beyond_the_limit_is_refused_and_writes_nothing() {
        let table = CdfTable::new(-1, &[1000, 60000, 1000]).unwrap();
        let mut encoder = RangeEncoder::new();
        for symbol in [SYMBOL_LIMIT + 1, -SYMBOL_LIMIT - 1, i32::MAX, i32::MIN] {
            assert_eq!(encoder.encode_symbol(&table, symbol), Err(EntropyError::SymbolRange { symbol }));
            _ = table.cost(symbol);
        }
        assert!(encoder.finish().is_empty());
    }

    #[test]
    fn costs_are_logarithms() {
        for frequency in 1..=TOTAL {
            let exact = -(f64::from(frequency) / f64::from(TOTAL)).log2() * 256.0;
            let cost = f64::from(cost_of_frequency(frequency));
            assert!((cost - exact).abs() <= 1.001, "{frequency}: {cost} {exact}");
        }
    }

    #[test]
    fn the_bytes_of_a_fixed_sequence_never_change() {
        let table = CdfTable::new(-3, &[10, 100, 5000, 50000, 5000, 100, 10]).unwrap();
        let mut encoder = RangeEncoder::new();
        for i in 0..200 {
            encoder
                .encode_symbol(&table, if i % 50 == 49 { 1000 * (i - 100) } else { i * i % 7 - 3 })
                .unwrap();
        }
        let bytes = encoder.finish();
        assert_eq!((bytes.len(), crate::entropy::fnv1a(&bytes)), (179, 6_560_391_514_794_314_648));
    }
}
