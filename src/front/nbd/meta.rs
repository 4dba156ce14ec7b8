//! Metadata contexts: what a client asks for in `LIST_META_CONTEXT` and `SET_META_CONTEXT`.
//!
//! The one context is `base:allocation`: which bytes have contents of their own.

/// The context's name.
pub const ALLOCATION: &[u8] = b"base:allocation";
/// Its number on every connection that selected it.
pub const ALLOCATION_ID: u32 = 1;
/// Its namespace: the query for all contexts in it, in a list.
const NAMESPACE: &[u8] = b"base:";

/// An option's data, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Query<'a> {
    /// The export's name.
    pub export: &'a [u8],
    /// Whether [`ALLOCATION`] is to be listed.
    pub lists: bool,
    /// Whether [`ALLOCATION`] is to be selected: wildcards select nothing.
    pub selects: bool,
}

impl<'a> Query<'a> {
    /// Reads an option's data, if its lengths are consistent. Queries for what is not known here
    /// are for others and ignored.
    pub fn parse(data: &'a [u8]) -> Option<Self> {
        let (export, rest) = split_string(data)?;
        let (count, mut rest) = rest.split_first_chunk::<4>()?;
        let count = u32::from_be_bytes(*count);
        let mut query = Self { export, lists: count == 0, selects: false };
        for _ in 0..count {
            let (wanted, after) = split_string(rest)?;
            rest = after;
            query.selects |= wanted == ALLOCATION;
            query.lists |= wanted == ALLOCATION || wanted == NAMESPACE;
        }
        rest.is_empty().then_some(query)
    }
}

/// A string behind its length, and what follows.
fn split_string(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = data.split_first_chunk::<4>()?;
    rest.split_at_checked(u32::from_be_bytes(*length) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(export: &str, queries: &[&str]) -> Vec<u8> {
        let string = |text: &str| [&(text.len() as u32).to_be_bytes(), text.as_bytes()].concat();
        let mut data = string(export);
        data.extend_from_slice(&(queries.len() as u32).to_be_bytes());
        data.extend(queries.iter().flat_map(|query| string(query)));
        data
    }

    /// Goal: no query lists all, a wildcard lists and does not select, unknown ones do nothing.
    #[test]
    fn queries() {
        let cases: [(&[&str], bool, bool); 5] = [
            (&[], true, false),
            (&["base:"], true, false),
            (&["base:allocation"], true, true),
            (&["qemu:dirty-bitmap:x", "base:allocation"], true, true),
            (&["base:other", "x-y:", ""], false, false),
        ];
        for (queries, lists, selects) in cases {
            let data = data("vol0", queries);
            assert_eq!(Query::parse(&data), Some(Query { export: b"vol0", lists, selects }));
        }
    }

    /// Goal: data that is cut, or goes on, is no query, nor is one with a count beyond reason.
    #[test]
    fn lengths_are_checked() {
        let whole = data("vol0", &["base:allocation"]);
        for end in 0..whole.len() {
            assert_eq!(Query::parse(&whole[..end]), None, "{end} bytes");
        }
        assert_eq!(Query::parse(&[&whole[..], b"x"].concat()), None);
        assert_eq!(Query::parse(&[0, 0, 0, 0, 255, 255, 255, 255]), None);
    }
}
