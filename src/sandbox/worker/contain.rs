//! What a worker gives up: new privileges, files, core dumps, life after its parent, and almost every
//! system call.

#![expect(unsafe_code, reason = "limits its own process")]

use std::collections::BTreeMap;
use std::fs;
use std::io;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::Limits;

/// How much a compile steps back for the threads that serve requests.
const NICENESS: libc::c_int = 5;

/// The first thing the fork server does, for all its workers.
pub(super) fn begin() -> io::Result<()> {
    // The first to go when memory runs out. Best effort: not every system lets us.
    let _ = fs::write("/proc/self/oom_score_adj", "1000");
    // SAFETY: these calls change attributes of this process and take no pointers but that of a name, which outlives
    // the call. Nothing in this process owns the descriptors closed here: it has opened none.
    unsafe {
        // Signals to the gateway's process group (such as a terminal's) or by its name are not for its compiles. Not a session of
        // its own, with which niceness would not count against the gateway (sched(7), autogroup).
        libc::setpgid(0, 0);
        libc::prctl(libc::PR_SET_NAME, c"compile-worker".as_ptr(), 0, 0, 0);
        check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
        check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0))?;
        check(libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0))?;
        // To be less important never fails for want of a right; and if it did, nothing is lost.
        libc::setpriority(libc::PRIO_PROCESS, 0, NICENESS);
        // Linux before 5.9 lacks it; the parent's descriptors are close-on-exec anyway.
        libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0);
    }
    limit(libc::RLIMIT_CORE, 0, 0)?;
    // No file can be written. (A limit on processes would count all of the user's.)
    limit(libc::RLIMIT_FSIZE, 0, 0)
}

/// What a worker does not have from the fork server: the first thing it does.
pub(super) fn begin_worker() -> io::Result<()> {
    // SAFETY: the call changes an attribute of this process and takes no pointers.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) })
}

/// Bounds memory and CPU time.
pub(super) fn bound(limits: Limits) -> io::Result<()> {
    let memory = limits.memory_bytes_max;
    limit(libc::RLIMIT_AS, memory, memory)?;
    // At the first the kernel sends SIGXCPU, which says why; at the second SIGKILL, which does not.
    let seconds = limits.cpu_seconds_max;
    limit(libc::RLIMIT_CPU, seconds, seconds.saturating_add(1))
}

/// From here on, a system call that compiling does not need ends the process. Returns zero, or the
/// error number that says why this kernel has no such filter.
pub(super) fn filter() -> i32 {
    let installed = filters().map_err(|_| libc::ENOSYS).and_then(|filters| {
        filters.iter().try_for_each(|filter| {
            seccompiler::apply_filter_all_threads(filter).map_err(|error| match error {
                seccompiler::Error::Prctl(error) | seccompiler::Error::Seccomp(error) => {
                    error.raw_os_error().unwrap_or(libc::ENOSYS)
                }
                seccompiler::Error::Backend(_)
                | seccompiler::Error::EmptyFilter
                | seccompiler::Error::ThreadSync(_) => libc::EINVAL,
            })
        })
    });
    installed.err().unwrap_or(0)
}

/// Closes standard output, to which nothing is written after.
pub(super) fn close_output() {
    // SAFETY: the descriptor is the process's own; the standard library's handle to it is not used
    // again, and would answer with an error if it was.
    unsafe { libc::close(libc::STDOUT_FILENO) };
}

/// The kernel takes the strictest answer of all filters. The first tells the C library that there is
/// no `clone3`, whose flags are in memory where a filter can't see them: it then starts its threads
/// with `clone`. (The compilers run in a thread of their own.) The second holds everything else.
fn filters() -> Result<[BpfProgram; 2], seccompiler::BackendError> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let clone3 = SeccompFilter::new(
        BTreeMap::from([(libc::SYS_clone3, Vec::new())]),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::ENOSYS as u32),
        arch,
    )?;
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = ALLOWED
        .iter()
        .map(|number| (*number, Vec::new()))
        .chain([(libc::SYS_clone3, Vec::new())])
        .collect();
    rules.insert(libc::SYS_clone, vec![thread()?]);
    // `abort` sends a signal to its own process; no signal goes to another.
    rules.insert(
        libc::SYS_tgkill,
        vec![argument(0, u64::from(std::process::id()))?],
    );
    // What a debug build asks of a descriptor before it closes it.
    rules.insert(libc::SYS_fcntl, vec![argument(1, libc::F_GETFD as u64)?]);
    // Names of threads.
    rules.insert(
        libc::SYS_prctl,
        vec![argument(0, libc::PR_SET_NAME as u64)?],
    );
    let others = SeccompFilter::new(
        rules,
        SeccompAction::KillProcess,
        SeccompAction::Allow,
        arch,
    )?;
    Ok([clone3.try_into()?, others.try_into()?])
}

/// What a compile needs after its start: the pipes it has, memory, threads, time, and its end.
const ALLOWED: [i64; 29] = [
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_close,
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_set_tid_address,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_membarrier,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// `clone` for a thread of this process: not for a process, nor into new namespaces.
fn thread() -> Result<SeccompRule, seccompiler::BackendError> {
    let namespaces = libc::CLONE_NEWCGROUP
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWUSER
        | libc::CLONE_NEWUTS;
    let looked_at = (libc::CLONE_THREAD | namespaces) as u32;
    SeccompRule::new(vec![SeccompCondition::new(
        0,
        SeccompCmpArgLen::Dword,
        SeccompCmpOp::MaskedEq(u64::from(looked_at)),
        libc::CLONE_THREAD as u64,
    )?])
}

fn argument(index: u8, value: u64) -> Result<SeccompRule, seccompiler::BackendError> {
    SeccompRule::new(vec![SeccompCondition::new(
        index,
        SeccompCmpArgLen::Dword,
        SeccompCmpOp::Eq,
        value,
    )?])
}

fn limit(resource: libc::__rlimit_resource_t, soft: u64, hard: u64) -> io::Result<()> {
    let mut current = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the structure outlives both calls.
    unsafe {
        check(libc::getrlimit(resource, &mut current))?;
        check(libc::setrlimit(
            resource,
            &libc::rlimit {
                rlim_cur: soft.min(current.rlim_max),
                rlim_max: hard.min(current.rlim_max),
            },
        ))
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests;
