//! `flipside group`: makes, lists and deletes consistency groups, of a metadata server that is
//! named, or of that of a running target.

use anyhow::{Context as _, Result, anyhow};
use serde_json::Value;

use super::control::ControlArgs;
use super::groups::{self, ListedGroup, Stranger};
use super::network::{self, MdsArgs};
use super::overview::table;
use super::values::Name;
use crate::front::control::{GroupRequest, Request};

const EXAMPLES: &str = "\
Examples:
  Of the only target that runs here, whose volumes then commit together:
    flipside group create database data log
    flipside commit --group database
    flipside group list
    flipside group delete database
  Of several targets with one metadata server, where two pools have a volume named data:
    flipside group create pair --mds 10.0.0.1:10810 \\
      0f9c6a0e-5b0c-4d0e-9f8e-2f6d3c1b7a55:data 7d5f0b1c-2a7e-4c1f-8a3e-0c9d8e7f6a5b:data

After any crash all volumes of a group are at one common cut. Volumes of a group cannot be deleted;
deleting the group leaves its volumes as they are.

Exit codes:
  0  done
  1  failed; the reason is on the standard error
  2  the command line is wrong";

/// Flags of `flipside group`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Make a group of volumes that commit together, and wait until their targets serve it
    Create {
        /// Its name
        name: Name,
        /// Its volumes: NAME, or POOL:NAME where several pools have one of that name
        #[arg(value_name = "VOLUME", required = true)]
        volumes: Vec<String>,
        #[command(flatten)]
        place: PlaceArgs,
    },
    /// List the groups
    List {
        /// Print JSON, whose names stay from version to version
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        place: PlaceArgs,
    },
    /// Delete a group; its volumes stay
    Delete {
        /// Its name
        name: String,
        /// Delete it though a transaction took place that targets which are gone for good have not
        /// heard of: should one come back, it drops its part of that, and the volumes are not at
        /// one cut any more. Refused while such a target runs
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        place: PlaceArgs,
    },
}

/// Who is asked.
#[derive(clap::Args)]
struct PlaceArgs {
    #[command(flatten)]
    control: ControlArgs,
    #[command(flatten)]
    mds: MdsArgs,
}

/// Carries out one of the actions.
pub fn run(args: &Args) -> Result<()> {
    match &args.action {
        Action::Create { name: Name(name), volumes, place } => {
            let (name, volumes) = (name.clone(), volumes.clone());
            let count = volumes.len();
            let said = place.ask(GroupRequest::Create { name: name.clone(), volumes })?;
            println!("group {name} of {count} volumes");
            tell(&name, said);
        }
        Action::List { json, place } => {
            let answer = place.ask(GroupRequest::List)?;
            if *json {
                println!("{}", serde_json::to_string_pretty(&answer)?);
            } else {
                let groups: Vec<ListedGroup> =
                    serde_json::from_value(answer).context("the target is of another version")?;
                println!("{}", text(&groups));
            }
        }
        Action::Delete { name, force, place } => {
            tell(name, place.ask(GroupRequest::Delete { name: name.clone(), force: *force })?);
        }
    }
    Ok(())
}

/// Says what there is to say of a group.
fn tell(name: &str, said: Value) {
    if let Value::String(said) = said
        && !said.is_empty()
    {
        eprintln!("flipside: group {name}: {said}");
    }
}

/// The list for people.
pub fn text(groups: &[ListedGroup]) -> String {
    let header = ["group", "volume", "pool", "target", "life", "stage", "transaction", "trouble"];
    let rows = groups.iter().flat_map(|group| {
        group.volumes.iter().map(move |volume| {
            let none = || "-".to_owned();
            let target = match (volume.attached, volume.waited) {
                (false, _) => "away",
                (true, true) => "WAITED FOR",
                (true, false) => "attached",
            };
            [
                group.name.clone(),
                volume.name.clone(),
                volume.pool.clone().unwrap_or_else(none),
                target.to_owned(),
                group.life.to_string(),
                group.stage.clone(),
                group.transaction.clone().unwrap_or_else(none),
                group.trouble.clone().unwrap_or_else(none),
            ]
        })
    });
    table(header, rows, 4..5)
}

impl PlaceArgs {
    fn ask(&self, request: GroupRequest) -> Result<Value> {
        if self.mds.mds.is_none() {
            return self.control.ask(&Request::Group(request));
        }
        network::ask(&self.mds, |remote| async move {
            let env = remote.env.clone();
            // A link that was made once can be made again.
            remote.link()?;
            let at = remote.clone();
            let link = move || at.link().expect("the same link was made before");
            let server = Stranger { env, link };
            let patient = async { Ok(groups::carry_out(&server, request).await) };
            remote.answered(patient).await?.map_err(|reason| anyhow!(reason))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::groups::ListedMember;

    /// Goal: the list for people shows what the other one has, and who is waited for.
    #[test]
    fn the_list_is_a_table() {
        let volume = |name: &str, waited| ListedMember {
            name: name.to_owned(),
            pool: None,
            attached: true,
            waited,
        };
        let group = ListedGroup {
            name: "database".to_owned(),
            number: 3,
            life: 2,
            transaction: Some("mds-1-7".to_owned()),
            stage: "sealing".to_owned(),
            trouble: None,
            volumes: vec![volume("data", false), volume("log", true)],
        };
        let text = text(&[group]);
        for part in ["database", "data", "log", "mds-1-7", "sealing", "WAITED FOR", "attached"] {
            assert!(text.contains(part), "{part} in:\n{text}");
        }
    }
}
