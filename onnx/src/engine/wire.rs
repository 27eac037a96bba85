//! Checks the lengths in an ONNX file before rten reads it.
//!
//! rten 0.27 believes them: one near 2^64 makes it seek backwards and loop for ever, one that is merely large makes it
//! allocate as much. This walks the messages that rten decodes (onnx.proto3) and fails on a length that is not there.

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
    /// One that has no messages in it.
    Leaf,
}

/// Graphs in attributes of nodes in graphs: no exporter goes deeper than a few.
const DEEPEST: usize = 64;

/// What a field holds, if that is a message.
fn child(message: Message, field: u64) -> Option<Message> {
    use Message::*;
    Some(match (message, field) {
        (Model, 7) => Graph,
        (Model, 25) => Function,
        (Model, 8 | 14) => Leaf,
        (Graph, 1) | (Function, 7) => Node,
        (Graph, 5) | (Attribute, 5 | 10) | (SparseTensor, 1 | 2) => Tensor,
        (Graph, 15) | (Attribute, 22 | 23) => SparseTensor,
        (Graph, 11..=13) | (Function, 12) => ValueInfo,
        (Graph, 14 | 16) | (Function, 9 | 14) | (Node, 9) | (Tensor, 3 | 13 | 16) | (ValueInfo, 4) => Leaf,
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

/// Fails with what is wrong, and at which byte, unless `bytes` can be an ONNX model.
pub(super) fn check(bytes: &[u8]) -> Result<(), String> {
    const GRAPH: u64 = 7;
    let mut graphs = 0;
    walk(bytes, 0, Message::Model, 0, &mut |field| graphs += usize::from(field == GRAPH))?;
    if graphs == 1 { Ok(()) } else { Err(format!("this is no ONNX model: it has {graphs} graphs")) }
}

fn walk(
    bytes: &[u8],
    start: usize,
    message: Message,
    depth: usize,
    seen: &mut dyn FnMut(u64),
) -> Result<(), String> {
    let mut rest = bytes;
    if depth > DEEPEST {
        return Err(format!("byte {start}: messages in messages, more than {DEEPEST} deep"));
    }
    while !rest.is_empty() {
        let at = start + bytes.len() - rest.len();
        let wrong = |what: &str| format!("byte {at}: {what}; the file is cut off, or it is no ONNX model");
        let (tag, after) = varint(rest).ok_or_else(|| wrong("a field has no end"))?;
        let (field, wire) = (tag >> 3, tag & 7);
        let (length, after) = match wire {
            0 => (0, varint(after).ok_or_else(|| wrong("a number has no end"))?.1),
            1 => (8, after),
            2 => varint(after).ok_or_else(|| wrong("a length has no end"))?,
            5 => (4, after),
            _ => return Err(wrong("there is a field of unknown kind")),
        };
        let content = usize::try_from(length).ok().and_then(|length| after.split_at_checked(length));
        let (content, after) = content.ok_or_else(|| wrong("a field is longer than what is left"))?;
        seen(field);
        if wire == 2
            && let Some(inner) = child(message, field)
        {
            let start = start + bytes.len() - after.len() - content.len();
            walk(content, start, inner, depth + 1, &mut |_| ())?;
        }
        rest = after;
    }
    Ok(())
}

/// A number in groups of 7 bits, and what follows it.
fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
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
        let length = [0xff; 9].into_iter().chain([1]);
        let name: Vec<u8> = [0x12].into_iter().chain(length).collect();
        for levels in 0..3 {
            // Model, graph (field 7), node (field 1): lengths are one byte here.
            let mut bytes = name.clone();
            for tag in [0x0a, 0x3a].into_iter().skip(2 - levels.min(2)) {
                bytes = [&[tag, bytes.len() as u8][..], &bytes].concat();
            }
            assert!(check(&bytes).unwrap_err().contains("longer than what is left"), "{levels}");
        }
        assert!(check(&[0x3a, 0]).is_ok());
        assert!(check(&[]).unwrap_err().contains("0 graphs"));
    }
}
