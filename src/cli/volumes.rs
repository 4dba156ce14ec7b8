//! What can be asked about a pool's volumes, carried out: by a running target, and by `flipside
//! volume` on devices that are not served. There is one way for both.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::env::os::OsEnv;
use crate::front::control::VolumeRequest;
use crate::front::nbd::Server;
use crate::unit::{ManageError, Unit, Volume};

/// A volume as `flipside volume list --json` shows it. The names stay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// How many bytes of it have extents of the pool behind them.
    pub allocated: u64,
    /// How many clients are connected to it.
    pub clients: usize,
}

/// Carries out a request on the volumes of `unit`, which `server` offers to clients where it is
/// served: what there is to say, or why not, for people.
pub async fn carry_out(
    unit: &Unit<OsEnv>,
    server: Option<&Server<Volume<OsEnv>>>,
    request: VolumeRequest,
) -> Result<Value, String> {
    let clients = |name: &str| server.map_or(0, |server| server.clients_of(name));
    let done = match request {
        VolumeRequest::List => return list(unit, clients),
        VolumeRequest::Create { name, size } => {
            let made = unit.create_volume(&name, size).await;
            made.map_err(|error| said(&name, &error)).map(|volume| {
                if let Some(server) = server {
                    server.add_export(volume);
                }
            })
        }
        VolumeRequest::Resize { name, size, shrink } => {
            let volume = find(unit, &name)?;
            let resized = unit.resize_volume(volume.id(), size, shrink).await;
            resized.map_err(|error| said(&name, &error))
        }
        VolumeRequest::Rename { name, to } => {
            let volume = find(unit, &name)?;
            let renamed = unit.rename_volume(volume.id(), &to).await;
            renamed.map_err(|error| said(&format!("{name} to {to}"), &error))
        }
        VolumeRequest::Delete { name, force } => {
            let volume = find(unit, &name)?;
            let connected = clients(&name);
            if connected > 0 && !force {
                let who = if connected == 1 { "a client is" } else { "clients are" };
                return Err(format!("{name}: {who} connected to it; disconnect, or say --force"));
            }
            delete(unit, server, &volume).await.map_err(|error| said(&name, &error))
        }
    };
    done.map(|()| Value::Null)
}

fn list(unit: &Unit<OsEnv>, clients: impl Fn(&str) -> usize) -> Result<Value, String> {
    let volumes = unit.volumes().into_iter().map(|volume| Listed {
        name: volume.name().to_string(),
        size: volume.size(),
        allocated: volume.allocated(),
        clients: clients(&volume.name()),
    });
    serde_json::to_value(volumes.collect::<Vec<_>>()).map_err(|error| error.to_string())
}

/// Deletes a volume; those who are connected to it get errors, and their connections end.
async fn delete(
    unit: &Unit<OsEnv>,
    server: Option<&Server<Volume<OsEnv>>>,
    volume: &Volume<OsEnv>,
) -> Result<(), ManageError> {
    let name = volume.name();
    // Nobody is let in from here on.
    if let Some(server) = server {
        server.remove_export(&name);
    }
    let deleted = unit.delete_volume(volume.id()).await;
    let Some(server) = server else { return deleted };
    // It may have been renamed, or deleted by another request, meanwhile.
    let name = volume.name();
    if deleted.is_ok() {
        server.disconnect(&name);
    } else if unit.volume(&name).is_some_and(|live| live.id() == volume.id()) {
        server.remove_export(&name);
        server.add_export(volume.clone());
    }
    deleted
}

fn find(unit: &Unit<OsEnv>, name: &str) -> Result<Volume<OsEnv>, String> {
    unit.volume(name).ok_or_else(|| format!("no volume is named {name}"))
}

fn said(what: &str, error: &ManageError) -> String {
    format!("volume {what}: {error}")
}
