//! The list. What could hurt other tests if it succeeded is a dry run: rights are checked all the same.

mod objects;
mod powers;
mod secrets;

use http::Method;
use serde_json::Value;

use super::thief::{Attempt, Thief, Want, attempt};

/// Name, method, path, JSON body and what has to come of it.
type Row = (&'static str, Method, String, Value, Want);

pub(super) fn all(thief: &Thief) -> Vec<Attempt> {
    let about_secrets = [secrets::reads(thief), secrets::others_places(thief), secrets::over_others(thief)];
    let about_objects = [objects::removals(thief), objects::pods(thief), objects::objects(thief)];
    let about_powers = [powers::identities(), powers::rights(thief), powers::admission(), powers::cluster(thief)];
    let rows = about_secrets.into_iter().chain(about_objects).chain(about_powers).flatten();
    let plain = rows.map(|(name, method, path, body, want)| attempt(name, method, path, body, want));
    let forms = secrets::other_forms(thief).into_iter().chain(secrets::patches(thief)).chain(secrets::shapes(thief));
    plain.chain(forms).chain(powers::impersonations(thief)).collect()
}
