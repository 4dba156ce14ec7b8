//! What a server is asked without attaching: pools are registered and forgotten, and what it tells
//! of itself.
//!
//! # Contracts
//!
//! - **At least once**, as all requests: all of these may be repeated.
//! - **Waiting**: while the server is silent they wait; dropping the future gives up.

use zerocopy::IntoBytes;
use zerocopy::little_endian::U64;

use super::exchange::Exchange;
use super::{groups, parsed};
use crate::env::{Env, Link};
use crate::format::ids::PoolId;
use crate::mds::catalog::PoolSpec;
use crate::mds::error::{MdsError, Refusal};
use crate::mds::overview::{self, Overview, RawPoolSeen, RawSessionSeen, Section};
use crate::mds::raw::{self, RawForget};
use crate::mds::records::ServerStatus;
use crate::mds::wire::{HEADER_BYTES, Operation};

/// Makes a pool known to the server; again, of the same pool, it does nothing.
pub async fn register<E: Env>(
    env: &E,
    link: E::Link,
    pool: PoolId,
    spec: &PoolSpec,
) -> Result<(), MdsError> {
    let exchange = Exchange::start(env, link);
    let body = raw::pool_spec_body(pool, spec);
    exchange.call(Operation::RegisterPool, &body).await.map(drop)
}

/// Has the server forget a pool and all that it knows of it; with `force` also one that somebody is
/// attached to, whose session ends. Again, it does nothing.
///
/// The first question is which registration that is, so that whoever has recorded this cannot have
/// a later one forgotten.
pub async fn forget<E: Env>(
    env: &E,
    link: E::Link,
    pool: PoolId,
    force: bool,
) -> Result<(), MdsError> {
    let exchange = Exchange::start(env, link);
    let ask = async |number| {
        let body = RawForget::new(pool, number, force);
        exchange.call(Operation::ForgetPool, body.as_bytes()).await.map(drop)
    };
    match ask(raw::NO_NUMBER).await {
        Err(MdsError::Refused { refusal: Refusal::RegisteredAnew, detail, .. }) => {
            ask(detail as u32).await
        }
        answered => answered,
    }
}

/// All that the server tells of itself. What changes meanwhile may be in it or not.
pub async fn overview<E: Env>(env: &E, link: E::Link) -> Result<Overview, MdsError> {
    let page_bytes = link.payload_max().min(overview::PAGE_BYTES_MAX) - HEADER_BYTES;
    let exchange = Exchange::start(env, link);
    let ask = async |section: Section| {
        exchange.call(Operation::Overview, &section.body(page_bytes)).await
    };
    let reply = ask(Section::Counters).await?;
    let words = parsed(Operation::Overview, raw::one::<[U64; ServerStatus::COUNT]>(&reply))?;
    let counters = ServerStatus::from_words(words.map(U64::get));
    let mut seen = Overview { counters, ..Overview::default() };
    let mut from = Some(PoolId::default());
    while let Some(first) = from {
        let reply = ask(Section::Pools(first)).await?;
        let page = parsed(Operation::Overview, raw::many::<RawPoolSeen>(&reply))?;
        seen.pools.extend(page.iter().map(overview::PoolSeen::from));
        let full = page.len() >= page_bytes / size_of::<RawPoolSeen>();
        let last = seen.pools.last().filter(|_| full);
        from = last.and_then(|last| overview::name_after(last.pool));
    }
    loop {
        let reply = ask(Section::Sessions(seen.sessions.len() as u64)).await?;
        let page = parsed(Operation::Overview, raw::many::<RawSessionSeen>(&reply))?;
        seen.sessions.extend(page.iter().map(overview::SessionSeen::from));
        if page.len() < page_bytes / size_of::<RawSessionSeen>() {
            break;
        }
    }
    (seen.groups, seen.members) = groups::seen(page_bytes, ask).await?;
    Ok(seen)
}
