//! What the door's process gives up before it talks to strangers. Each thing a kernel or a container does not let it give up
//! is said, and it goes on without.

use rustix::process::{
    DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit,
};
use rustix::thread::{
    CapabilitySet, Gid, Uid, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use crate::sys::confine::{self, Landlocked};

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
    tried(
        "drop all capabilities",
        confine::keep_capabilities(CapabilitySet::empty()),
    );
    tried("forbid new privileges", confine::no_new_privileges());
    tried("deny system calls", confine::deny_system_calls());
    if let Landlocked::No(why) = confine::only_beneath(&[], &[]) {
        not.push(format!("paths are closed to it by its user alone: {why}"));
    }
    not
}
