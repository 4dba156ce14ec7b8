//! What can be asked about consistency groups, carried out: by a running target with its session at
//! the metadata server, and by `flipside group --mds` without one. There is one way for both.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::env::os::OsEnv;
use crate::env::{Env as _, Link};
use crate::format::ids::PoolId;
use crate::front::control::GroupRequest;
use crate::mds::client::groups::{create_at, delete_at, groups_at};
use crate::mds::error::{MdsError, Refusal};
use crate::mds::groups::rows::Deletion;
use crate::mds::overview::{GroupSeen, MemberSeen};
use crate::txn::{GroupId, Stage, Trouble};
use crate::unit::Unit;

/// How long a new group is waited for until all of its targets serve it.
const FORMING_MAX: Duration = Duration::from_secs(5);
/// How often is looked.
const FORMING_PAUSE: Duration = Duration::from_millis(50);

/// A consistency group as `flipside group list --json` shows it. The names stay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedGroup {
    /// Its name.
    pub name: String,
    /// Its number at the metadata server.
    pub number: u32,
    /// Grows where a member lost what was not committed.
    pub life: u32,
    /// The transaction under way, if there is one.
    pub transaction: Option<String>,
    /// `rest`, `sealing`, `preparing` or `committing`.
    pub stage: String,
    /// Why no transaction can succeed now.
    pub trouble: Option<String>,
    /// Its volumes.
    pub volumes: Vec<ListedMember>,
}

/// A volume of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedMember {
    /// Its name.
    pub name: String,
    /// Its pool; none of an embedded metadata server's.
    pub pool: Option<String>,
    /// Whether the pool is being served.
    pub attached: bool,
    /// Whether its target is waited for.
    pub waited: bool,
}

type Seen = (Vec<GroupSeen>, Vec<MemberSeen>);
type Volumes = [(Option<PoolId>, String)];

/// Whom a command asks.
pub trait Server {
    /// The groups, and their volumes.
    async fn seen(&self) -> Result<Seen, MdsError>;
    /// Makes a group.
    async fn create(&self, name: &str, volumes: &Volumes) -> Result<GroupId, MdsError>;
    /// Deletes a group.
    async fn delete(&self, deletion: Deletion) -> Result<(), MdsError>;
    /// Waits.
    async fn pause(&self, time: Duration);
}

/// A metadata server that is asked without a session, each time by a link of its own.
pub struct Stranger<F> {
    /// The world.
    pub env: OsEnv,
    /// Makes links.
    pub link: F,
}

impl Server for Unit<OsEnv> {
    async fn seen(&self) -> Result<Seen, MdsError> {
        self.metadata_server().groups().await
    }

    async fn create(&self, name: &str, volumes: &Volumes) -> Result<GroupId, MdsError> {
        self.metadata_server().create_group(name, volumes).await
    }

    async fn delete(&self, deletion: Deletion) -> Result<(), MdsError> {
        self.metadata_server().delete_group(deletion).await
    }

    async fn pause(&self, time: Duration) {
        self.env().sleep(time).await;
    }
}

impl<F: Fn() -> <OsEnv as crate::env::Env>::Link> Server for Stranger<F>
where
    <OsEnv as crate::env::Env>::Link: Link,
{
    async fn seen(&self) -> Result<Seen, MdsError> {
        groups_at(&self.env, (self.link)()).await
    }

    async fn create(&self, name: &str, volumes: &Volumes) -> Result<GroupId, MdsError> {
        create_at(&self.env, (self.link)(), name, volumes).await
    }

    async fn delete(&self, deletion: Deletion) -> Result<(), MdsError> {
        delete_at(&self.env, (self.link)(), deletion).await
    }

    async fn pause(&self, time: Duration) {
        self.env.sleep(time).await;
    }
}

/// Carries out a request: what there is to say, or why not, for people.
pub async fn carry_out(server: &impl Server, request: GroupRequest) -> Result<Value, String> {
    match request {
        GroupRequest::List => {
            let listed = listed(server.seen().await.map_err(|error| error.to_string())?);
            serde_json::to_value(listed).map_err(|error| error.to_string())
        }
        GroupRequest::Create { name, volumes } => {
            let named: Vec<_> = volumes.iter().map(|text| parse(text)).collect();
            let made = server.create(&name, &named).await;
            let made = made.map_err(|error| refused(&name, &volumes, &error))?;
            formed(server, made).await.map(Value::String)
        }
        GroupRequest::Delete { name, force } => {
            let (groups, members) = server.seen().await.map_err(|error| error.to_string())?;
            let found = groups.iter().find(|of| of.name == name);
            let found = found.ok_or_else(|| format!("no group is named {name}"))?;
            let deleted = server.delete(Deletion { group: found.group, force }).await;
            deleted.map_err(|error| format!("group {name}: {error}"))?;
            Ok(Value::String(left_behind(found, &members)))
        }
    }
}

/// What is to be said of a group that was deleted while a transaction of it was not done: nothing
/// where there is none.
fn left_behind(group: &GroupSeen, members: &[MemberSeen]) -> String {
    let own = members.iter().filter(|of| of.group == group.group && of.waited);
    let pools: BTreeSet<String> = own.map(|of| of.pool.to_string()).collect();
    match group.transaction {
        Some(transaction) if group.stage == Stage::Committed && !pools.is_empty() => format!(
            "transaction {transaction} took place, and the targets of these pools have not said \
             that they know: should one come back, it drops its part of it, and its volumes are \
             not at one cut with the others: {}",
            pools.into_iter().collect::<Vec<_>>().join(", ")
        ),
        _ => String::new(),
    }
}

/// A volume as NAME or POOL:NAME.
fn parse(text: &str) -> (Option<PoolId>, String) {
    let Some((pool, name)) = text.split_once(':') else { return (None, text.to_owned()) };
    // A volume's name may have a colon, too.
    match Uuid::parse_str(pool) {
        Ok(pool) => (Some(PoolId(pool.into_bytes())), name.to_owned()),
        Err(_) => (None, text.to_owned()),
    }
}

/// What a refusal is about.
fn refused(name: &str, volumes: &[String], error: &MdsError) -> String {
    let MdsError::Refused { refusal, detail, .. } = error else { return error.to_string() };
    let of_volume = matches!(
        refusal,
        Refusal::UnknownVolume | Refusal::VolumeAmbiguous | Refusal::VolumeInGroup
    );
    let volume = volumes.get(*detail as usize).filter(|_| of_volume);
    match volume {
        Some(volume) => format!("group {name}: volume {volume}: {refusal}"),
        None => format!("group {name}: {error}"),
    }
}

/// Waits until all targets that are attached serve a new group; what is to be said where they do
/// not in good time.
async fn formed(server: &impl Server, made: GroupId) -> Result<String, String> {
    let mut waited = Duration::ZERO;
    loop {
        let (groups, members) = server.seen().await.map_err(|error| error.to_string())?;
        let trouble = groups.iter().find(|of| of.group == made).and_then(|of| of.trouble.clone());
        let own = members.iter().filter(|of| of.group == made);
        let away = own.clone().filter(|of| !of.attached).count();
        let (forming, said) = match trouble {
            None if away == 0 => return Ok(String::new()),
            None => {
                let text = "volumes of targets that do not run join when those are started";
                return Ok(format!("{away} {text}"));
            }
            Some(Trouble::Forming) => (true, "its targets have not all joined".to_owned()),
            Some(trouble) => (true, text_of(&trouble)),
        };
        if forming && waited >= FORMING_MAX {
            return Ok(format!("it commits nothing yet: {said}"));
        }
        server.pause(FORMING_PAUSE).await;
        waited += FORMING_PAUSE;
    }
}

/// A trouble for people.
pub fn text_of(trouble: &Trouble) -> String {
    match trouble {
        Trouble::Silent(unit) => format!("the target of pool {unit} is silent"),
        Trouble::Refused { unit, reason } => format!("the target of pool {unit}: {reason}"),
        Trouble::Forming => "not all targets serve it yet".to_owned(),
    }
}

/// The groups with their volumes.
pub fn listed((groups, members): Seen) -> Vec<ListedGroup> {
    let member = |of: &MemberSeen| ListedMember {
        name: of.name.clone(),
        pool: (of.pool != PoolId::default()).then(|| of.pool.to_string()),
        attached: of.attached,
        waited: of.waited,
    };
    let group = |of: GroupSeen| ListedGroup {
        number: of.group.0,
        life: of.life,
        transaction: of.transaction.map(|id| id.to_string()),
        stage: match of.stage {
            Stage::Rest | Stage::Aborted => "rest",
            Stage::Seal => "sealing",
            Stage::AllSealed => "preparing",
            Stage::Committed => "committing",
        }
        .to_owned(),
        trouble: of.trouble.as_ref().map(text_of),
        volumes: members.iter().filter(|member| member.group == of.group).map(member).collect(),
        name: of.name,
    };
    groups.into_iter().map(group).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::group::TransactionId;
    use crate::format::ids::{Incarnation, VolumeId};

    /// Goal: a pool is told from a name with a colon.
    #[test]
    fn volumes_of_pools() {
        let pool = "0f9c6a0e-5b0c-4d0e-9f8e-2f6d3c1b7a55";
        let parsed = parse(&format!("{pool}:a:b"));
        assert_eq!(parsed.0.unwrap().to_string(), pool);
        assert_eq!(parsed.1, "a:b");
        assert_eq!(parse("a:b"), (None, "a:b".to_owned()));
    }

    /// Goal: a refusal names the volume that it is for.
    #[test]
    fn refusals_name_volumes() {
        let error =
            |refusal, detail| MdsError::Refused { operation: "CreateGroup", refusal, detail };
        let volumes = ["a".to_owned(), "b".to_owned()];
        let said = refused("g", &volumes, &error(Refusal::UnknownVolume, 1));
        assert_eq!(said, "group g: volume b: no such volume");
        assert!(refused("g", &volumes, &error(Refusal::NameTaken, 0)).starts_with("group g: the"));
    }

    /// Goal: who deletes a group that is not done everywhere is told what that means, and of whom.
    #[test]
    fn what_is_left_behind() {
        let (coordinator, incarnation) = (crate::txn::COORDINATOR, Incarnation(1));
        let transaction = Some(TransactionId { coordinator, incarnation, number: 4 });
        let group = |stage| GroupSeen {
            group: GroupId(1),
            name: "g".to_owned(),
            version: 1,
            life: 1,
            transaction,
            stage,
            trouble: None,
        };
        let member = |pool, waited| MemberSeen {
            group: GroupId(1),
            pool: PoolId([pool; 16]),
            volume: VolumeId(1),
            name: "v".to_owned(),
            attached: false,
            waited,
        };
        let members = [member(1, false), member(2, true)];
        assert_eq!(left_behind(&group(Stage::Seal), &members), "");
        assert_eq!(left_behind(&group(Stage::Committed), &members[..1]), "");
        let said = left_behind(&group(Stage::Committed), &members);
        let two = PoolId([2; 16]).to_string();
        assert!(said.starts_with("transaction mds-1-4 took place") && said.ends_with(&two));
    }

    /// Goal: each group has its own volumes, and an embedded server's pool no name.
    #[test]
    fn volumes_of_groups() {
        let group = |number, name: &str| GroupSeen {
            group: GroupId(number),
            name: name.to_owned(),
            version: 1,
            life: 1,
            transaction: None,
            stage: Stage::Rest,
            trouble: Some(Trouble::Silent("p".to_owned())),
        };
        let member = |number, name: &str| MemberSeen {
            group: GroupId(number),
            pool: PoolId::default(),
            volume: VolumeId(number),
            name: name.to_owned(),
            attached: true,
            waited: false,
        };
        let seen = (vec![group(1, "g"), group(2, "h")], vec![member(1, "a"), member(2, "b")]);
        let listed = listed(seen);
        assert_eq!(listed[1].volumes.len(), 1);
        assert_eq!((listed[1].volumes[0].name.as_str(), &listed[1].volumes[0].pool), ("b", &None));
        assert_eq!(listed[0].trouble.as_deref(), Some("the target of pool p is silent"));
    }
}
