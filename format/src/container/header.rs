//! The header: 20 to 32 bytes, enough to know size, length and bundle without a model.

use byteorder::{ByteOrder, LE};

use crate::Error;

/// The first bytes of every SDL file. As in PNG, damage by a transfer in text mode shows at once.
pub const SIGNATURE: [u8; 8] = [0x93, b'S', b'D', b'L', b'\r', b'\n', 0x1a, b'\n'];
/// A header without optional fields.
pub const MIN_HEADER_BYTES: usize = 20;
/// A header with all of them.
pub const MAX_HEADER_BYTES: usize = 32;

const VERSION: u8 = 0;
const FLAG_GREY: u8 = 1;
const FLAG_DURATION: u8 = 2;
const FLAG_NATURAL: u8 = 4;
const METHOD_SHIFT: u32 = 4;
const METHOD_MASK: u8 = 3;
const ALPHA_SHIFT: u32 = 6;
const RESERVED: u8 = 8;
/// The value of the bundle byte that announces 8 bytes of a bundle's id.
const NAMED_BUNDLE: u8 = 0xff;

/// How the latent became symbols and bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Method {
    /// Scalar quantisation, frequency tables of the bundle.
    Trained,
    /// Scalar quantisation, universal coder.
    Scalar,
    /// Indices into vectors that the file brings.
    Palette,
    /// Indices into the codebook of the bundle.
    Codebook,
}

impl Method {
    /// Its name, for people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Method::Trained => "scalar, trained tables",
            Method::Scalar => "scalar, universal coder",
            Method::Palette => "palette",
            Method::Codebook => "codebook",
        }
    }

    fn from_code(code: u8) -> Self {
        match code & METHOD_MASK {
            0 => Method::Trained,
            1 => Method::Scalar,
            2 => Method::Palette,
            _ => Method::Codebook,
        }
    }

    fn code(self) -> u8 {
        match self {
            Method::Trained => 0,
            Method::Scalar => 1,
            Method::Palette => 2,
            Method::Codebook => 3,
        }
    }
}

/// The depth of an alpha plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AlphaDepth {
    /// 8 bits, 255 is opaque.
    Eight,
    /// 16 bits, 65,535 is opaque.
    Sixteen,
    /// Floating point, 1.0 is opaque.
    Float,
}

impl AlphaDepth {
    fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(AlphaDepth::Eight),
            2 => Some(AlphaDepth::Sixteen),
            3 => Some(AlphaDepth::Float),
            _ => None,
        }
    }

    fn code(self) -> u8 {
        match self {
            AlphaDepth::Eight => 1,
            AlphaDepth::Sixteen => 2,
            AlphaDepth::Float => 3,
        }
    }

    /// Bits of a sample.
    #[must_use]
    pub fn bits(self) -> u8 {
        match self {
            AlphaDepth::Eight => 8,
            AlphaDepth::Sixteen => 16,
            AlphaDepth::Float => 32,
        }
    }
}

/// The bundle that decodes a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BundleRef {
    /// A generation of the built-in model.
    BuiltIn(u8),
    /// The first 8 bytes of a bundle's id.
    Named([u8; 8]),
}

impl std::fmt::Display for BundleRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            BundleRef::BuiltIn(generation) => write!(f, "built-in generation {generation}"),
            BundleRef::Named(id) => id.iter().try_for_each(|byte| write!(f, "{byte:02x}")),
        }
    }
}

/// What an SDL file says of itself before any chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Bytes of the whole file.
    pub length: u32,
    /// Width in pixels, 1 to 65,535.
    pub width: u16,
    /// Height in pixels, 1 to 65,535.
    pub height: u16,
    /// Quality, 0 to 100; for trained tables the level that chooses the step.
    pub quality: u8,
    /// The picture has one channel of grey; else red, green and blue.
    pub grey: bool,
    /// The author meant the `natural` decoder.
    pub natural: bool,
    /// The depth of the alpha plane, if the picture has one.
    pub alpha: Option<AlphaDepth>,
    /// How the latent is coded.
    pub method: Method,
    /// The bundle that decodes it.
    pub bundle: BundleRef,
    /// How long the picture is shown in a stream, in microseconds.
    pub duration: Option<u32>,
}

impl Header {
    /// Bytes of this header in the file.
    #[must_use]
    pub fn size(&self) -> usize {
        let named = matches!(self.bundle, BundleRef::Named(_));
        MIN_HEADER_BYTES + if named { 8 } else { 0 } + if self.duration.is_some() { 4 } else { 0 }
    }

    /// Reads a header from the start of `bytes`; `Ok(None)` where more bytes are needed to know.
    ///
    /// # Errors
    ///
    /// [`Error::NotSdl`] as soon as the signature cannot match, [`Error::Unsupported`] for an unknown version or
    /// flag, [`Error::Corrupt`] for a zero width or height, a quality beyond 100 or an impossible length.
    pub fn parse(bytes: &[u8]) -> Result<Option<Self>, Error> {
        let seen = bytes.len().min(SIGNATURE.len());
        if bytes[..seen] != SIGNATURE[..seen] {
            let text_mode = bytes.starts_with(&SIGNATURE[..4]);
            return Err(Error::NotSdl(if text_mode {
                "its line ends were changed; transfer it in binary mode"
            } else {
                "it does not begin with the signature"
            }));
        }
        let Some(fixed) = bytes.first_chunk::<MIN_HEADER_BYTES>() else { return Ok(None) };
        if fixed[12] != VERSION {
            return Err(Error::Unsupported(format!("the file has format version {}", fixed[12])));
        }
        let flags = fixed[13];
        let method = Method::from_code(flags >> METHOD_SHIFT);
        if flags & RESERVED != 0 {
            return Err(Error::Unsupported("the header has an unknown flag".to_owned()));
        }
        let mut header = Header {
            length: LE::read_u32(&fixed[8..]),
            width: LE::read_u16(&fixed[14..]),
            height: LE::read_u16(&fixed[16..]),
            quality: fixed[18],
            grey: flags & FLAG_GREY != 0,
            natural: flags & FLAG_NATURAL != 0,
            alpha: AlphaDepth::from_code(flags >> ALPHA_SHIFT),
            method,
            bundle: BundleRef::BuiltIn(fixed[19]),
            duration: None,
        };
        let mut rest = &bytes[MIN_HEADER_BYTES..];
        if fixed[19] == NAMED_BUNDLE {
            let Some((id, after)) = rest.split_first_chunk::<8>() else { return Ok(None) };
            header.bundle = BundleRef::Named(*id);
            rest = after;
        }
        if flags & FLAG_DURATION != 0 {
            let Some(duration) = rest.first_chunk::<4>() else { return Ok(None) };
            header.duration = Some(LE::read_u32(duration));
        }
        header.check()?;
        Ok(Some(header))
    }

    fn check(&self) -> Result<(), Error> {
        if self.width == 0 || self.height == 0 {
            return Err(Error::corrupt("the header says that the picture has no pixels"));
        }
        if self.quality > 100 {
            return Err(Error::corrupt(format!("the header says quality {}, beyond 100", self.quality)));
        }
        if (self.length as usize) <= self.size() {
            return Err(Error::corrupt("the header says a length that holds no picture"));
        }
        Ok(())
    }

    /// The header as it stands in the file.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; MIN_HEADER_BYTES];
        bytes[..8].copy_from_slice(&SIGNATURE);
        LE::write_u32(&mut bytes[8..], self.length);
        bytes[12] = VERSION;
        bytes[13] = self.method.code() << METHOD_SHIFT
            | self.alpha.map_or(0, AlphaDepth::code) << ALPHA_SHIFT
            | if self.grey { FLAG_GREY } else { 0 }
            | if self.duration.is_some() { FLAG_DURATION } else { 0 }
            | if self.natural { FLAG_NATURAL } else { 0 };
        LE::write_u16(&mut bytes[14..], self.width);
        LE::write_u16(&mut bytes[16..], self.height);
        bytes[18] = self.quality;
        match self.bundle {
            BundleRef::BuiltIn(generation) => bytes[19] = generation,
            BundleRef::Named(id) => {
                bytes[19] = NAMED_BUNDLE;
                bytes.extend(id);
            }
        }
        if let Some(duration) = self.duration {
            bytes.extend(duration.to_le_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            length: 1234,
            width: 768,
            height: 512,
            quality: 50,
            grey: false,
            natural: false,
            alpha: None,
            method: Method::Trained,
            bundle: BundleRef::BuiltIn(0),
            duration: None,
        }
    }

    #[test]
    fn every_field_survives_and_every_prefix_asks_for_more() {
        let plain = header();
        let full = Header {
            grey: true,
            natural: true,
            alpha: Some(AlphaDepth::Float),
            method: Method::Scalar,
            bundle: BundleRef::Named([1, 2, 3, 4, 5, 6, 7, 8]),
            duration: Some(40_000),
            ..header()
        };
        let other = |method| Header { method, ..header() };
        for header in [plain, full, other(Method::Palette), other(Method::Codebook)] {
            let bytes = header.to_bytes();
            assert_eq!(bytes.len(), header.size());
            assert_eq!(Header::parse(&bytes).unwrap(), Some(header));
            for cut in 0..bytes.len() {
                assert_eq!(Header::parse(&bytes[..cut]).unwrap(), None);
            }
        }
    }

    #[test]
    fn what_is_no_header_is_refused_with_its_reason() {
        assert!(matches!(Header::parse(b"\x89PNG"), Err(Error::NotSdl(_))));
        assert!(
            matches!(Header::parse(b"\x93SDL\n\x1a\n"), Err(Error::NotSdl(reason)) if reason.contains("binary mode"))
        );
        let broken = |change: fn(&mut Vec<u8>)| {
            let mut bytes = header().to_bytes();
            change(&mut bytes);
            Header::parse(&bytes).unwrap_err().to_string()
        };
        assert!(broken(|b| b[12] = 9).contains("version 9"));
        assert!(broken(|b| b[13] = 8).contains("unknown flag"));
        assert!(broken(|b| b[14..16].fill(0)).contains("no pixels"));
        assert!(broken(|b| b[18] = 101).contains("quality 101"));
        assert!(broken(|b| b[8..12].fill(0)).contains("length"));
    }
}
