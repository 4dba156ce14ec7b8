//! Consistency groups: what a unit reports of them, who makes and deletes them, and what is shown.
//!
//! # Contracts
//!
//! - **Whole state**: a report is of the present when it is sent and may arrive later, again, or
//!   out of order, as all queries; so may orders. [`crate::txn`] is made for it.
//! - **Nudges** may be lost: who waits for one waits for the time to ask by itself, too. Of those
//!   that wait the newest counts, as each tells all.

use zerocopy::little_endian::U32;

use super::exchange::Exchange;
use super::{Client, parsed};
use crate::env::Env;
use crate::format::ids::PoolId;
use crate::mds::error::{MdsError, Refusal};
use crate::mds::groups::rows::{Deletion, NamedVolume, NewGroup};
use crate::mds::overview::PAGE_BYTES_MAX;
use crate::mds::overview::{GroupSeen, MemberSeen, RawGroupSeen, RawMemberSeen, Section};
use crate::mds::raw;
use crate::mds::wire::{HEADER_BYTES, Operation, PAYLOAD_MAX};
use crate::txn::wire::{REPORT_BYTES_MAX, orders, put_report};
use crate::txn::{GroupId, Order, Report};

impl<E: Env> Client<E> {
    /// Reports where this unit is, and gives what it is to do: an order for each of its groups,
    /// and for each transaction that was reported and is not the group's present one. Many reports
    /// are several requests, and each of those is answered with all groups.
    pub async fn coordinate(&self, reports: &[Report]) -> Result<Vec<Order>, MdsError> {
        let operation = Operation::Coordinate;
        let most = self.exchange.payload_max().min(PAYLOAD_MAX) - HEADER_BYTES;
        let mut given = Vec::new();
        let mut rest = reports;
        loop {
            let (mut body, mut taken) = (Vec::new(), 0);
            while taken < rest.len() && body.len() + REPORT_BYTES_MAX <= most {
                put_report(&rest[taken], &mut body);
                taken += 1;
            }
            let reply = self.exchange.call(operation, &body).await?;
            given.extend(parsed(operation, orders(&reply))?);
            rest = &rest[taken..];
            if rest.is_empty() {
                return Ok(given);
            }
        }
    }

    /// Returns when the server has said, since the last time, that there is news: an order for each
    /// group of this unit, as [`Client::coordinate`] would give where nothing is asked about;
    /// nothing where it is to be asked. One caller at a time.
    pub async fn nudged(&self) -> Vec<Order> {
        let said = self.exchange.nudged().await;
        // What cannot be read is asked for.
        orders(&said).unwrap_or_default()
    }

    /// Makes a group of these volumes, which may be of any pool of the server.
    pub async fn create_group(
        &self,
        name: &str,
        volumes: &[(Option<PoolId>, String)],
    ) -> Result<GroupId, MdsError> {
        create(&self.exchange, name, volumes).await
    }

    /// Deletes a group; its volumes stay.
    pub async fn delete_group(&self, deletion: Deletion) -> Result<(), MdsError> {
        delete(&self.exchange, deletion).await
    }

    /// All groups of the server, and their volumes.
    pub async fn groups(&self) -> Result<(Vec<GroupSeen>, Vec<MemberSeen>), MdsError> {
        let page_bytes = self.exchange.payload_max().min(PAGE_BYTES_MAX) - HEADER_BYTES;
        seen(page_bytes, async |section: Section| {
            self.exchange.call(Operation::Overview, &section.body(page_bytes)).await
        })
        .await
    }
}

/// As [`Client::create_group`], without a session.
pub async fn create_at<E: Env>(
    env: &E,
    link: E::Link,
    name: &str,
    volumes: &[(Option<PoolId>, String)],
) -> Result<GroupId, MdsError> {
    create(&Exchange::start(env, link), name, volumes).await
}

/// As [`Client::delete_group`], without a session.
pub async fn delete_at<E: Env>(env: &E, link: E::Link, deletion: Deletion) -> Result<(), MdsError> {
    delete(&Exchange::start(env, link), deletion).await
}

/// As [`Client::groups`], without a session.
pub async fn groups_at<E: Env>(
    env: &E,
    link: E::Link,
) -> Result<(Vec<GroupSeen>, Vec<MemberSeen>), MdsError> {
    let exchange = Exchange::start(env, link);
    let page_bytes = exchange.payload_max().min(PAGE_BYTES_MAX) - HEADER_BYTES;
    seen(page_bytes, async |section: Section| {
        exchange.call(Operation::Overview, &section.body(page_bytes)).await
    })
    .await
}

/// Asks with the number that the server says is the next.
async fn create<E: Env>(
    exchange: &Exchange<E>,
    name: &str,
    volumes: &[(Option<PoolId>, String)],
) -> Result<GroupId, MdsError> {
    let operation = Operation::CreateGroup;
    let named =
        |(pool, name): &(Option<PoolId>, String)| NamedVolume { pool: *pool, name: name.clone() };
    let volumes = volumes.iter().map(named).collect();
    let mut asked = NewGroup { number: u32::MAX, name: name.to_owned(), volumes };
    loop {
        let body = asked.body();
        let limit = exchange.payload_max().min(PAYLOAD_MAX) - HEADER_BYTES;
        if body.len() > limit {
            return Err(MdsError::TooLarge { what: "bytes of volumes' names", limit });
        }
        match exchange.call(operation, &body).await {
            Err(MdsError::Refused { refusal: Refusal::GroupStale, detail, .. })
                if detail != u64::from(asked.number) =>
            {
                asked.number = detail as u32;
            }
            answered => {
                let number = parsed(operation, raw::one::<U32>(&answered?))?;
                return Ok(GroupId(number.get()));
            }
        }
    }
}

async fn delete<E: Env>(exchange: &Exchange<E>, deletion: Deletion) -> Result<(), MdsError> {
    exchange.call(Operation::DeleteGroup, &deletion.body()).await.map(drop)
}

/// All groups and their volumes, in pages of so many bytes.
pub(super) async fn seen(
    page_bytes: usize,
    ask: impl AsyncFn(Section) -> Result<Vec<u8>, MdsError>,
) -> Result<(Vec<GroupSeen>, Vec<MemberSeen>), MdsError> {
    let operation = Operation::Overview;
    let (mut groups, mut members) = (Vec::<GroupSeen>::new(), Vec::new());
    loop {
        let from = groups.last().map_or(0, |last| last.group.0 + 1);
        let reply = ask(Section::Groups(from)).await?;
        let page = parsed(operation, raw::many::<RawGroupSeen>(&reply))?;
        for record in page {
            groups.push(parsed(operation, GroupSeen::try_from(record))?);
        }
        if page.len() < page_bytes / size_of::<RawGroupSeen>() {
            break;
        }
    }
    loop {
        let reply = ask(Section::Members(members.len() as u64)).await?;
        let page = parsed(operation, raw::many::<RawMemberSeen>(&reply))?;
        for record in page {
            members.push(parsed(operation, MemberSeen::try_from(record))?);
        }
        if page.len() < page_bytes / size_of::<RawMemberSeen>() {
            return Ok((groups, members));
        }
    }
}
