//! A query string, strictly: known keys, each at most once.

use super::BadRequest;

/// The values of `known` keys, in that order, decoded as `application/x-www-form-urlencoded`.
///
/// # Errors
/// An unknown or repeated key, or a value that is not decodable.
pub fn only<const N: usize>(
    raw: Option<&str>,
    known: [&str; N],
) -> Result<[Option<String>; N], BadRequest> {
    let mut values = [const { None }; N];
    for pair in raw
        .unwrap_or_default()
        .split('&')
        .filter(|pair| !pair.is_empty())
    {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let place = known.iter().position(|name| *name == key);
        let Some(slot) = place.and_then(|place| values.get_mut(place)) else {
            let shown: String = key.chars().take(40).collect();
            return Err(BadRequest::invalid(format!(
                "`{shown}` is no key of this query; there are {}",
                known.join(", ")
            )));
        };
        if slot.is_some() {
            return Err(BadRequest::invalid(format!("`{key}` is there twice")));
        }
        *slot = Some(decode(value)?);
    }
    Ok(values)
}

fn decode(value: &str) -> Result<String, BadRequest> {
    let shown: String = value.chars().take(80).collect();
    let bad = || BadRequest::invalid(format!("`{shown}` is not percent-encoded UTF-8"));
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'+' => bytes.push(b' '),
            b'%' => {
                let mut digit = || rest.next().and_then(|b| char::from(b).to_digit(16));
                let pair = digit()
                    .zip(digit())
                    .and_then(|(high, low)| u8::try_from(high * 16 + low).ok());
                bytes.push(pair.ok_or_else(bad)?);
            }
            plain => bytes.push(plain),
        }
    }
    String::from_utf8(bytes).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decoding() {
        for (raw, value) in [
            ("a=x", "x"),
            ("a=x+y%2b", "x y+"),
            ("a=", ""),
            ("a", ""),
            ("a=%C3%A9", "é"),
            ("&a=1&", "1"),
        ] {
            assert_eq!(
                only(Some(raw), ["a"]).unwrap(),
                [Some(value.to_owned())],
                "{raw}"
            );
        }
        assert_eq!(only(None, ["a", "b"]).unwrap(), [None, None]);
        for bad in ["a=%", "a=%4", "a=%ff", "b=1", "a=1&a=1", "%61=1"] {
            assert!(only(Some(bad), ["a"]).is_err(), "{bad}");
        }
    }
}
