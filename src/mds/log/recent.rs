//! Rows as newer changes leave them: what a store would hold if they were applied.

use std::ops::Bound;

use crate::mds::store::{Changes, Row, Table};

/// The changes of a table's rows from `from` up to `end`, in order.
fn changes_of<'a>(
    changes: &'a Changes,
    table: Table,
    from: &[u8],
    end: Option<&[u8]>,
) -> impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)> {
    let start = Bound::Included((table, from.to_vec()));
    let end = end.map_or(Bound::Unbounded, |end| Bound::Included((table, end.to_vec())));
    let rows = changes.range((start, end)).take_while(move |((of, _), _)| *of == table);
    rows.map(|((_, key), value)| (key.as_slice(), value.as_deref()))
}

/// Two ordered sequences of keyed things as one; where both have a key, the newer one's counts.
fn merged<'a, V>(
    newer: impl Iterator<Item = (&'a [u8], V)>,
    older: impl Iterator<Item = (&'a [u8], V)>,
) -> impl Iterator<Item = (&'a [u8], V)> {
    let (mut newer, mut older) = (newer.peekable(), older.peekable());
    std::iter::from_fn(move || match (newer.peek(), older.peek()) {
        (Some((new, _)), Some((old, _))) if old < new => older.next(),
        (Some((new, _)), Some((old, _))) => {
            if new == old {
                older.next();
            }
            newer.next()
        }
        (Some(_), None) => newer.next(),
        (None, _) => older.next(),
    })
}

/// Up to `limit` rows of a page of a table's rows, as they are after the changes, of which those of
/// `newer` count first. The page has all rows from `from` up to `end`, that one included, or to the
/// last.
pub fn after(
    [newer, older]: [&Changes; 2],
    table: Table,
    from: &[u8],
    end: Option<&[u8]>,
    page: &[Row],
    limit: usize,
) -> Vec<Row> {
    let page = page.iter().map(|(key, value)| (key.as_slice(), Some(value.as_slice())));
    let older = merged(changes_of(older, table, from, end), page);
    let rows = merged(changes_of(newer, table, from, end), older);
    let there = rows.filter_map(|(key, value)| Some((key.to_vec(), value?.to_vec())));
    there.take(limit).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    type Values = BTreeMap<u8, Option<u8>>;

    fn changes(values: &Values) -> Changes {
        let row = |(key, value): (&u8, &Option<u8>)| {
            ((Table::Pairs, vec![*key]), value.map(|value| vec![value]))
        };
        let mut changes: Changes = values.iter().map(row).collect();
        for other in [Table::Grants, Table::Layout] {
            changes.insert((other, vec![5]), Some(vec![5]));
        }
        changes
    }

    proptest! {
        /// Goal: rows are those that applying the changes one after the other would leave.
        #[test]
        fn as_if_applied(
            page in proptest::collection::btree_map(0..30u8, any::<u8>(), 0..20),
            older in proptest::collection::btree_map(0..30u8, any::<Option<u8>>(), 0..20),
            newer in proptest::collection::btree_map(0..30u8, any::<Option<u8>>(), 0..20),
            from in 0..30u8, end in prop::option::of(0..30u8), limit in 0..20usize,
        ) {
            prop_assume!(end.is_none_or(|end| from <= end));
            let inside = |key: &u8| *key >= from && end.is_none_or(|end| *key <= end);
            let mut model: BTreeMap<u8, Option<u8>> =
                page.iter().map(|(key, value)| (*key, Some(*value))).collect();
            model.extend(&older);
            model.extend(&newer);
            let expected: Vec<Row> = model
                .into_iter()
                .filter(|(key, _)| inside(key))
                .filter_map(|(key, value)| Some((vec![key], vec![value?])))
                .take(limit)
                .collect();
            let page: Vec<Row> = page
                .into_iter()
                .filter(|(key, _)| inside(key))
                .map(|(key, value)| (vec![key], vec![value]))
                .collect();
            let both = [&changes(&newer), &changes(&older)];
            let end = end.map(|end| vec![end]);
            let rows = after(both, Table::Pairs, &[from], end.as_deref(), &page, limit);
            prop_assert_eq!(rows, expected);
        }
    }
}
