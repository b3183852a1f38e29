//! What the admission policies refuse to the agent's own token where the component central is installed, each by its name:
//! masters and records lie in their namespace and nothing else does, and ConfigMaps are bounded as Secrets are.

mod bounds;
mod created;
mod stage;
mod tenants;
mod updated;
