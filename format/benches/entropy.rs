//! Throughput of the entropy coders, in symbols a second on one core.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use image_sdl::entropy::{CdfSet, CdfTable, LatentShape, RangeDecoder, RangeEncoder, universal};
use std::hint::black_box;

const SYMBOLS: usize = 1 << 20;

/// A linear congruential generator; the same numbers on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32
    }
}

/// 64 two-sided geometric tables, from nearly certain zeros to a scale of about 25.
fn tables() -> CdfSet {
    let tables = (0..64).map(|index| {
        let scale = 0.1 * 1.09f64.powi(index);
        let reach = ((scale * 8.0) as i32).clamp(1, 128);
        let weight = |symbol: i32| (-f64::from(symbol.abs()) / scale).exp();
        let sum: f64 = (-reach..=reach).map(weight).sum();
        let room = 65536.0 - 1.0 - f64::from(2 * reach + 1);
        let frequencies: Vec<u16> = (-reach..=reach).map(|s| 1 + (weight(s) / sum * room) as u16).collect();
        CdfTable::new(-reach, &frequencies).expect("the frequencies are normalised")
    });
    CdfSet::new(tables.collect()).expect("64 tables")
}

fn frozen_tables(criterion: &mut Criterion) {
    let set = tables();
    let mut random = Random(1);
    let indices: Vec<u8> = (0..SYMBOLS).map(|_| (random.next() % 64) as u8).collect();
    // Random bytes decode to symbols with the probabilities of the tables.
    let noise: Vec<u8> = (0..SYMBOLS).map(|_| random.next() as u8).collect();
    let mut source = RangeDecoder::new(&noise);
    let symbols: Vec<i32> =
        indices.iter().map(|&index| source.decode_symbol(&set[usize::from(index)])).collect();

    let encode = || {
        let mut encoder = RangeEncoder::new();
        for (&symbol, &index) in symbols.iter().zip(&indices) {
            _ = encoder.encode_symbol(&set[usize::from(index)], symbol);
        }
        encoder.finish()
    };
    let bytes = encode();
    println!("{:.3} bits a symbol", bytes.len() as f64 * 8.0 / SYMBOLS as f64);

    let mut group = criterion.benchmark_group("frozen tables");
    group.throughput(Throughput::Elements(SYMBOLS as u64));
    group.sample_size(20);
    group.bench_function("encode", |bencher| bencher.iter(|| black_box(encode())));
    group.bench_function("decode", |bencher| {
        let mut output = vec![0; SYMBOLS];
        bencher.iter(|| {
            let mut decoder = RangeDecoder::new(&bytes);
            for (symbol, &index) in output.iter_mut().zip(&indices) {
                *symbol = decoder.decode_symbol(&set[usize::from(index)]);
            }
            black_box(&output);
        });
        assert_eq!(output, symbols);
    });
    group.finish();
}

/// Four channels of a smooth surface with noise, about as many bits a symbol as a Stable Diffusion latent at step 2.
fn universal_coder(criterion: &mut Criterion) {
    let shape = LatentShape { channels: 4, height: 64, width: 96 };
    let mut random = Random(2);
    let mut symbols = Vec::new();
    for channel in 0..4 {
        for y in 0..64 {
            for x in 0..96 {
                let noise = (random.next() % 3 + random.next() % 3) as i32 - 2;
                symbols.push((x * (channel + 1) + y * 3) / 16 % 7 - 3 + noise);
            }
        }
    }
    let bytes = universal::encode(&symbols, shape).expect("symbols in range");
    println!("{:.3} bits a symbol", bytes.len() as f64 * 8.0 / symbols.len() as f64);
    let mut group = criterion.benchmark_group("universal");
    group.throughput(Throughput::Elements(symbols.len() as u64));
    group.sample_size(20);
    group.bench_function("encode", |bencher| bencher.iter(|| universal::encode(black_box(&symbols), shape)));
    group.bench_function("decode", |bencher| bencher.iter(|| universal::decode(black_box(&bytes), shape)));
    group.finish();
}

criterion_group!(benches, frozen_tables, universal_coder);
criterion_main!(benches);
