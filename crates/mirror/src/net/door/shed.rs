//! What the door's process gives up before it talks to strangers. Each thing a kernel or a container does not let it give up
//! is said, and it goes on without.

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetStatus,
    Scope,
};
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit,
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, Gid, Uid, set_capabilities, set_no_new_privs, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
};

/// Only this thread, and those it starts, are changed: to be called before there are others. What could not be done.
pub fn shed(user: Option<(u32, u32)>, descriptors: u64) -> Vec<String> {
    let mut not = Vec::new();
    let mut tried = |what: &str, done: rustix::io::Result<()>| {
        if let Err(e) = done {
            not.push(format!("cannot {what}: {e}"));
        }
    };
    let hard = getrlimit(Resource::Nofile).maximum;
    let limit = Some(hard.map_or(descriptors, |hard| hard.min(descriptors)));
    let fixed = Rlimit {
        current: limit,
        maximum: limit,
    };
    tried(
        "fix the number of descriptors",
        setrlimit(Resource::Nofile, fixed),
    );
    tried(
        "forbid core dumps",
        set_dumpable_behavior(DumpableBehavior::NotDumpable),
    );
    if let Some((user, group)) = user {
        let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
        let done = set_thread_groups(&[])
            .and_then(|()| set_thread_res_gid(group, group, group))
            .and_then(|()| set_thread_res_uid(user, user, user));
        tried("become an unprivileged user", done);
        // The kernel takes the mark away with the change of user.
        tried(
            "forbid core dumps",
            set_dumpable_behavior(DumpableBehavior::NotDumpable),
        );
    }
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    tried("drop all capabilities", set_capabilities(None, none));
    tried("forbid new privileges", set_no_new_privs(true));
    match fence() {
        Ok(RulesetStatus::NotEnforced) => {
            not.push(
                "this kernel has no Landlock: paths are closed to the door by its user alone"
                    .into(),
            );
        }
        Ok(_) => {}
        Err(e) => not.push(format!("cannot close all paths by Landlock: {e}")),
    }
    not
}

/// No path, no new connection, nothing of other processes.
fn fence() -> Result<RulesetStatus, landlock::RulesetError> {
    let abi = ABI::V6;
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(abi))?
        .handle_access(AccessNet::from_all(abi))?
        .scope(Scope::from_all(abi))?
        .create()?
        .restrict_self()?;
    Ok(status.ruleset)
}
