//! Where a picture begins and ends in a stream of bytes.

use image_sdl::{Error, Header, MAX_HEADER_BYTES, SIGNATURE};

pub(crate) const MEDIA_TYPE: &str = image_sdl::MEDIA_TYPE;

/// What stands at the start of some bytes of a stream.
#[derive(Debug, PartialEq)]
pub(crate) enum Found {
    /// So many bytes that belong to no picture.
    Junk(usize),
    /// More bytes are needed, so many altogether.
    NeedMore(usize),
    /// A whole picture.
    Picture(Header),
    /// The beginning of a picture of which only so many bytes are there: the next picture follows.
    Cut(usize),
}

/// Looks at the start of a stream of which a part may have been looked at before.
#[derive(Debug, Default)]
pub(crate) struct Scanner {
    /// So much behind the start has been searched for another picture.
    searched: usize,
}

impl Scanner {
    /// What stands at the start of `bytes`. After `Junk`, `Picture` and `Cut` the caller takes those bytes away.
    ///
    /// A picture of more than `max_size` bytes counts as junk: its length is nothing to wait for.
    pub fn scan(&mut self, bytes: &[u8], max_size: usize) -> Found {
        let found = self.look(bytes, max_size);
        if !matches!(found, Found::NeedMore(_)) {
            self.searched = 0;
        }
        found
    }

    fn look(&mut self, bytes: &[u8], max_size: usize) -> Found {
        let header = match Header::parse(&bytes[..bytes.len().min(MAX_HEADER_BYTES)]) {
            Ok(Some(header)) if header.length as usize <= max_size => header,
            Ok(None) => return self.first_of(bytes, bytes.len() + 1, None),
            Err(Error::NotSdl(_)) => return Found::Junk(next_signature(bytes, 0)),
            // Not a header that can be followed: only the next signature is a place to go on.
            Ok(Some(_)) | Err(_) => return Found::Junk(next_signature(bytes, 1)),
        };
        let length = header.length as usize;
        self.first_of(bytes, length, Some(header))
    }

    /// The picture, unless another one begins inside it: then it was cut on its way, and waiting for its length would eat
    /// the next one.
    fn first_of(&mut self, bytes: &[u8], length: usize, header: Option<Header>) -> Found {
        // A signature that begins inside may end outside.
        let end = bytes.len().min(length.saturating_add(SIGNATURE.len() - 1));
        let from = self.searched.max(1).min(end);
        let next = next_signature(&bytes[..end], from);
        if next < length && next + SIGNATURE.len() <= end {
            return Found::Cut(next);
        }
        self.searched = end.saturating_sub(SIGNATURE.len() - 1);
        match header {
            Some(header) if bytes.len() >= length => Found::Picture(header),
            _ => Found::NeedMore(length),
        }
    }

    /// Forgets what has been searched.
    pub fn reset(&mut self) {
        self.searched = 0;
    }
}

/// So many bytes of what is none are looked at at a time.
const JUNK: usize = 64 << 10;

/// How many bytes of a stream [`Scanner::scan`] has to see, by what stands at its start (up to `MAX_HEADER_BYTES`): what follows a picture
/// need not be looked at for each picture in front of it.
pub(crate) fn reach(start: &[u8], max_size: usize) -> usize {
    match Header::parse(start) {
        Ok(Some(header)) if header.length as usize <= max_size => {
            (header.length as usize).saturating_add(SIGNATURE.len() - 1)
        }
        _ => JUNK,
    }
}

/// Where the next signature, or the beginning of one at the end, stands at or behind `from`; the length where none does.
fn next_signature(bytes: &[u8], from: usize) -> usize {
    let mut at = from.min(bytes.len());
    while let Some(step) = bytes[at..].iter().position(|&byte| byte == SIGNATURE[0]) {
        at += step;
        let rest = &bytes[at..];
        let seen = rest.len().min(SIGNATURE.len());
        if rest[..seen] == SIGNATURE[..seen] {
            return at;
        }
        at += 1;
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use image_sdl::{BundleRef, Method};

    const MAX: usize = 1 << 20;

    fn picture(length: u32) -> Vec<u8> {
        let header = Header {
            length,
            width: 8,
            height: 8,
            quality: 50,
            grey: false,
            natural: false,
            alpha: None,
            method: Method::Trained,
            bundle: BundleRef::BuiltIn(0),
            duration: None,
        };
        let mut bytes = header.to_bytes();
        bytes.resize(length as usize, 0x93);
        bytes
    }

    /// Every picture found, with the bytes arriving `step` at a time.
    fn pictures(stream: &[u8], step: usize, max_size: usize) -> (Vec<usize>, usize) {
        let (mut scanner, mut start, mut there) = (Scanner::default(), 0, 0);
        let (mut found, mut junk) = (Vec::new(), 0);
        loop {
            match scanner.scan(&stream[start..there], max_size) {
                Found::Picture(header) => {
                    found.push(header.length as usize);
                    start += header.length as usize;
                }
                Found::Junk(n) | Found::Cut(n) => {
                    junk += n;
                    start += n;
                    if n > 0 {
                        continue;
                    }
                }
                Found::NeedMore(_) => {}
            }
            if there == stream.len()
                && matches!(
                    scanner.scan(&stream[start..there], max_size),
                    Found::NeedMore(_) | Found::Junk(0)
                )
            {
                return (found, junk);
            }
            there = (there + step).min(stream.len());
        }
    }

    #[test]
    fn pictures_are_found_between_junk_at_every_step() {
        let mut stream = b"junk \x93SD junk".to_vec();
        stream.extend(picture(100));
        stream.extend(picture(64));
        stream.extend(b"\x93SDL\r\nnot quite");
        stream.extend(&picture(300)[..120]); // cut in the middle
        stream.extend(picture(77));
        stream.extend(&picture(500)[..400]); // cut tail
        for step in [1, 2, 3, 7, 50, 1000, 5000] {
            assert_eq!(pictures(&stream, step, MAX).0, [100, 64, 77], "{step} bytes at a time");
        }
    }

    #[test]
    fn what_is_in_reach_says_as_much_as_everything() {
        let mut stream = picture(100);
        stream.extend(&picture(300)[..120]);
        stream.extend(picture(77));
        stream.extend(b"\x93SDL\r\n\x1a\nand what looks like a header");
        stream.extend(vec![0; 2 * JUNK]);
        stream.extend(picture(2000));
        let mut start = 0;
        let mut found = Vec::new();
        while start < stream.len() {
            let rest = &stream[start..];
            let reach = reach(&rest[..rest.len().min(MAX_HEADER_BYTES)], MAX).min(rest.len());
            assert!(reach <= JUNK);
            let seen = Scanner::default().scan(&rest[..reach], MAX);
            let all = Scanner::default().scan(rest, MAX);
            start += match (&seen, all) {
                // Junk may come in parts.
                (&Found::Junk(part), Found::Junk(whole)) => {
                    assert!(0 < part && part <= whole);
                    part
                }
                (Found::Picture(header), all) => {
                    assert_eq!(seen, all);
                    found.push(header.length);
                    header.length as usize
                }
                (&Found::Cut(length), all) => {
                    assert_eq!(seen, all);
                    length
                }
                (Found::NeedMore(_), _) | (Found::Junk(_), _) => panic!("{seen:?}"),
            };
        }
        assert_eq!(found, [100, 77, 2000]);
    }

    #[test]
    fn a_length_beyond_the_limit_is_not_waited_for() {
        let mut stream = picture(2000);
        stream.truncate(40);
        stream.extend(picture(60));
        assert_eq!(pictures(&stream, 10, 1000).0, [60]);
    }
}
