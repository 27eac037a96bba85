//! Random damage: no panic, no hang, no memory that the file does not justify, and no other pixels.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::time::{Duration, Instant};

use image_sdl::onnx::Backend;
use sdl_tests::{Container, Random, decoder, options, read_vectors};

/// What one step of damage may be.
fn damage(bytes: &mut Vec<u8>, random: &mut Random) {
    if bytes.is_empty() {
        return bytes.push(random.byte());
    }
    let at = random.below(bytes.len());
    match random.below(6) {
        0 => bytes[at] ^= 1 << random.below(8),
        1 => bytes[at] = random.byte(),
        2 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)],
        3 => _ = bytes.remove(at),
        4 => bytes.insert(at, random.byte()),
        _ => bytes.truncate(at),
    }
}

/// Most of the memory that this process has had, in bytes of address space.
#[cfg(target_os = "linux")]
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmPeak:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// Alone in its file: memory is measured over the whole process.
#[test]
fn twenty_thousand_damaged_files_are_errors_without_panic_hang_or_huge_allocation() {
    const INPUTS: usize = 20_000;
    const MOST_MEMORY: u64 = 256 << 20;
    const SLOWEST: Duration = Duration::from_secs(2);
    let names = ["1x1", "17x33", "rgba-float", "metadata", "blocks-1x1", "blocks-17x33", "blocks-palette"];
    let vectors: Vec<Vec<u8>> = read_vectors()
        .into_iter()
        .filter(|vector| names.iter().any(|name| vector.file == format!("{name}.sdl")))
        .map(|vector| vector.read())
        .collect();
    assert_eq!(vectors.len(), names.len());
    let limits = options(Backend::Rust, 1).with_max_bytes(1 << 22);
    let verify = |bytes: &[u8]| decoder(bytes, Backend::Rust)?.verify(&limits).map(|_| ());
    for vector in &vectors {
        verify(vector).unwrap();
    }
    #[cfg(target_os = "linux")]
    let before = peak();

    let mut random = Random::new(20_000);
    let (mut behind_the_checksum, mut slowest) = (0, Duration::ZERO);
    for input in 0..INPUTS {
        let original = &vectors[random.below(vectors.len())];
        let steps = 1 + random.below(3);
        // Half of the damage is done under right checksums, so that it gets through to the symbols.
        let bytes = if input % 2 == 0 {
            let mut bytes = original.clone();
            (0..steps).for_each(|_| damage(&mut bytes, &mut random));
            bytes
        } else {
            let mut container = Container::parse(original);
            let part = random.below(container.chunks.len() + 1);
            for _ in 0..steps {
                match container.chunks.get_mut(part) {
                    Some((_, payload)) => damage(payload, &mut random),
                    None => {
                        let at = 12 + random.below(container.header.len() - 12);
                        container.header[at] = random.byte();
                    }
                }
            }
            container.to_bytes()
        };
        let start = Instant::now();
        let result = verify(&bytes);
        slowest = slowest.max(start.elapsed());
        match result {
            // Damage may undo itself; and under right checksums some fields may be changed: the quality, a
            // duration, a quantiser, the content of metadata.
            Ok(()) if bytes == *original || input % 2 == 1 => {}
            Ok(()) => panic!("input {input} is damaged and was taken"),
            Err(image_sdl::Error::Diverged { .. }) => behind_the_checksum += 1,
            Err(error) => behind_the_checksum += usize::from(error.to_string().contains("symbols of tile")),
        }
    }
    assert!(
        behind_the_checksum > INPUTS / 20,
        "only {behind_the_checksum} inputs got through to the symbols"
    );
    assert!(slowest < SLOWEST, "an input took {slowest:?}");
    #[cfg(target_os = "linux")]
    {
        let grown = peak() - before;
        assert!(grown < MOST_MEMORY, "{} MiB were allocated", grown >> 20);
    }
}
