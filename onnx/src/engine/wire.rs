//! Checks an ONNX file before an engine reads it.
//!
//! rten 0.27 believes the lengths in it: one near 2^64 makes it seek backwards and loop for ever, one that is merely large makes it
//! allocate as much. And a tensor may name a file that has its values: ONNX Runtime opens it, for a graph in memory from the working
//! folder on, whatever it is. This walks the messages of onnx.proto3, fails on a length that is not there, and lets no file be read
//! that was not declared.

use super::GraphSource;

/// The messages of onnx.proto3 that contain messages.
#[derive(Clone, Copy)]
enum Message {
    Model,
    Graph,
    Node,
    Attribute,
    Tensor,
    SparseTensor,
    ValueInfo,
    Type,
    TensorType,
    NestedType,
    Shape,
    Function,
    Training,
    /// A part of [`Message::Tensor`]'s external data: a key and what it stands for.
    External,
    /// One that has no messages in it.
    Leaf,
}

/// Graphs in attributes of nodes in graphs: no exporter goes deeper than a few.
const DEEPEST: usize = 64;
/// Where ONNX Runtime looks for the mark of a format of its own, which is no ONNX and is not checked here, and the mark.
const OTHER_FORMAT: (std::ops::Range<usize>, &[u8]) = (4..8, b"ORTM");

/// What a field holds, if that is a message.
fn child(message: Message, field: u32) -> Option<Message> {
    use Message::*;
    Some(match (message, field) {
        (Model, 7) | (Training, 1 | 2) => Graph,
        (Model, 20) => Training,
        (Model, 25) => Function,
        (Tensor, 13) => External,
        (Model, 8 | 14 | 26) | (Training, 3 | 4) => Leaf,
        (Graph, 1) | (Function, 7) => Node,
        (Graph, 5) | (Attribute, 5 | 10) | (SparseTensor, 1 | 2) => Tensor,
        (Graph, 15) | (Attribute, 22 | 23) => SparseTensor,
        (Graph, 11..=13) | (Function, 12) => ValueInfo,
        (Graph, 14 | 16) | (Function, 9 | 14) | (Node, 9 | 10) | (Tensor, 3 | 16) | (ValueInfo, 4) => Leaf,
        (Node, 5) | (Function, 11) => Attribute,
        (Attribute, 6 | 11) => Graph,
        (Attribute, 14 | 15) | (ValueInfo, 2) | (NestedType, 1 | 2) => Type,
        (Type, 1 | 8) => TensorType,
        (Type, 4 | 5 | 9) => NestedType,
        (TensorType, 2) => Shape,
        (Shape, 1) => Leaf,
        _ => return None,
    })
}

/// What a walk has found.
#[derive(Default)]
struct Found<'a> {
    /// Graphs of the model itself.
    graphs: usize,
    /// Nodes, wherever they are.
    nodes: usize,
    /// The files that tensors say their values are in.
    locations: Vec<&'a [u8]>,
}

/// Fails with what is wrong, and at which byte, unless `bytes` can be an ONNX model that reads no other files than `source` declares.
/// How many nodes it has.
pub(super) fn check(bytes: &[u8], source: &GraphSource) -> Result<usize, String> {
    if bytes.get(OTHER_FORMAT.0) == Some(OTHER_FORMAT.1) {
        return Err("this is no ONNX model, but one in ONNX Runtime's own format".to_owned());
    }
    let mut found = Found::default();
    walk(bytes, 0, Message::Model, 0, &mut found)?;
    if found.graphs != 1 {
        return Err(format!("this is no ONNX model: it has {} graphs", found.graphs));
    }
    let declares = |location: &&[u8]| std::str::from_utf8(location).is_ok_and(|name| source.declares(name));
    match found.locations.iter().find(|location| !declares(location)) {
        None => Ok(found.nodes),
        Some(location) => {
            const LONGEST_SHOWN: usize = 100;
            let shown = &location[..location.len().min(LONGEST_SHOWN)];
            Err(format!(
                "a tensor has its values in the file `{}`, which is not declared as external data of this graph",
                shown.escape_ascii()
            ))
        }
    }
}

fn walk<'a>(
    bytes: &'a [u8],
    start: usize,
    message: Message,
    depth: usize,
    found: &mut Found<'a>,
) -> Result<(), String> {
    let mut rest = bytes;
    if depth > DEEPEST {
        return Err(format!("byte {start}: messages in messages, more than {DEEPEST} deep"));
    }
    // Of a field that comes twice the last one counts.
    let (mut key, mut value): (&[u8], &[u8]) = (&[], &[]);
    while !rest.is_empty() {
        let at = start + bytes.len() - rest.len();
        let wrong = |what: &str| format!("byte {at}: {what}; the file is cut off, or it is no ONNX model");
        let (field, content, after) = first_field(rest).map_err(wrong)?;
        match (message, field, content) {
            (Message::Model, 7, _) => found.graphs += 1,
            (Message::Graph, 1, _) | (Message::Function, 7, _) => found.nodes += 1,
            (Message::External, 1, Content::Bytes(content)) => key = content,
            (Message::External, 2, Content::Bytes(content)) => value = content,
            _ => {}
        }
        if let Content::Bytes(content) = content
            && let Some(inner) = child(message, field)
        {
            let start = start + bytes.len() - after.len() - content.len();
            walk(content, start, inner, depth + 1, found)?;
        }
        rest = after;
    }
    if key == b"location" {
        found.locations.push(value);
    }
    Ok(())
}

/// What a field holds.
#[derive(Clone, Copy)]
#[cfg_attr(not(all(feature = "rten", target_arch = "x86_64")), allow(dead_code))]
pub(super) enum Content<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Four([u8; 4]),
    Eight,
}

/// The number of the first field of a message, what it holds, and what follows it; or what is wrong with it.
pub(super) fn first_field(bytes: &[u8]) -> Result<(u32, Content<'_>, &[u8]), &'static str> {
    const TOO_LONG: &str = "a field is longer than what is left";
    let (tag, after) = varint(bytes).ok_or("a field has no end")?;
    // Some readers take the lowest 32 bits of a longer one, and so another field.
    let tag = u32::try_from(tag).map_err(|_| "a field has no such number")?;
    let (content, after) = match tag & 7 {
        0 => varint(after)
            .map(|(number, after)| (Content::Number(number), after))
            .ok_or("a number has no end")?,
        1 => (Content::Eight, after.get(8..).ok_or(TOO_LONG)?),
        2 => {
            let (length, after) = varint(after).ok_or("a length has no end")?;
            let content = usize::try_from(length).ok().and_then(|length| after.split_at_checked(length));
            content.map(|(content, after)| (Content::Bytes(content), after)).ok_or(TOO_LONG)?
        }
        5 => after.split_first_chunk().map(|(four, after)| (Content::Four(*four), after)).ok_or(TOO_LONG)?,
        _ => return Err("there is a field of unknown kind"),
    };
    Ok((tag >> 3, content, after))
}

/// A number in groups of 7 bits, and what follows it.
pub(super) fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    const LONGEST: usize = 10;
    let mut value = 0u64;
    for (at, byte) in bytes.iter().take(LONGEST).enumerate() {
        value |= u64::from(byte & 0x7f).checked_shl(7 * at as u32)?;
        if byte & 0x80 == 0 {
            return Some((value, &bytes[at + 1..]));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_that_is_not_there_is_found_at_any_depth() {
        let source = GraphSource::bytes("g", Vec::new());
        let length = [0xff; 9].into_iter().chain([1]);
        let name: Vec<u8> = [0x12].into_iter().chain(length).collect();
        for levels in 0..3 {
            // Model, graph (field 7), node (field 1): lengths are one byte here.
            let mut bytes = name.clone();
            for tag in [0x0a, 0x3a].into_iter().skip(2 - levels.min(2)) {
                bytes = [&[tag, bytes.len() as u8][..], &bytes].concat();
            }
            assert!(check(&bytes, &source).unwrap_err().contains("longer than what is left"), "{levels}");
        }
        assert!(check(&[0x3a, 0], &source).is_ok());
        assert!(check(&[], &source).unwrap_err().contains("0 graphs"));
    }

    /// A field that holds a message, all lengths below 128.
    fn field(number: u8, content: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, content.len() as u8][..], content].concat()
    }

    #[test]
    fn a_file_that_is_not_declared_is_refused_wherever_a_tensor_names_it() {
        let entry = |name: &str| [field(1, b"location"), field(2, name.as_bytes())].concat();
        let tensor = |name: &str| field(13, &entry(name));
        // An initializer, a sparse one, the constant of a node, and that of a node in a branch of another one.
        let model = |kind: usize, name: &str| {
            let node = field(1, &field(5, &field(5, &tensor(name))));
            field(
                7,
                &match kind {
                    0 => field(5, &tensor(name)),
                    1 => field(15, &field(1, &tensor(name))),
                    2 => node,
                    _ => field(1, &field(5, &field(6, &node))),
                },
            )
        };
        let bytes = |name: &str| GraphSource::bytes("g", Vec::new()).with_external(name, Vec::new());
        for kind in 0..4 {
            let message = check(&model(kind, "etc/passwd"), &bytes("w.data")).unwrap_err();
            assert!(message.contains("the file `etc/passwd`"), "{kind}: {message}");
            assert!(check(&model(kind, "w.data"), &bytes("w.data")).is_ok(), "{kind}");
        }
        // A graph of nobody's bundle may have files beside it, and nowhere else.
        let file = GraphSource::file("/models/graph.onnx");
        assert!(check(&model(0, "w.data"), &file).is_ok());
        for name in ["../w.data", "/etc/passwd", "a/w.data", "..", ""] {
            assert!(check(&model(0, name), &file).is_err(), "{name}");
        }
        let declared = file.with_external_file("w.data").sealed();
        assert!(check(&model(0, "w.data"), &declared).is_ok());
        assert!(check(&model(0, "other.data"), &declared).is_err());
        // The number of a field in more than 32 bits is another one to some.
        let mut long = field(7, &field(5, &[0xea, 0x80, 0x80, 0x80, 0x10, 0]));
        assert!(check(&long, &bytes("w.data")).unwrap_err().contains("no such number"));
        long.splice(4..8, *b"ORTM");
        assert!(check(&long, &bytes("w.data")).unwrap_err().contains("own format"));
    }
}
