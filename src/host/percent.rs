//! Percent-encoding, as in the parts of a URL (RFC 3986, section 2.1).

/// The text that stands for this one; `None` if a `%` is not followed by two digits, or the bytes are not UTF-8.
pub fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        if first == b'%' {
            let digits = str::from_utf8(tail.get(..2)?).ok().filter(|digits| digits.bytes().all(|c| c.is_ascii_hexdigit()))?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &tail[2..];
        } else {
            bytes.push(first);
            rest = tail;
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::decoded;

    #[test]
    fn what_is_encoded_is_read_and_what_is_broken_is_refused() {
        for (text, meaning) in [("", ""), ("a/b", "a/b"), ("a%20b", "a b"), ("%C3%bc", "ü"), ("%25%32", "%2")] {
            assert_eq!(decoded(text).as_deref(), Some(meaning));
        }
        for broken in ["%", "%2", "%zz", "%+1", "%ff", "%c3x"] {
            assert_eq!(decoded(broken), None, "{broken}");
        }
    }
}
