//! A filter of system calls. It lists what is refused, not what is allowed: libraries and kernels
//! grow new harmless calls, and a daemon that dies of one is a daemon whose filter gets turned
//! off.
//!
//! None looks at arguments, so the kernel (5.11 and later) keeps the verdict of each call in a
//! bitmap and does not run the filter for those that are allowed.

use std::collections::BTreeMap;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

use crate::ConfineError;
use crate::report::{Protection, State};
use crate::settings::Off;

const NAME: &str = "seccomp";

/// What neither daemon ever does: look into or steer other processes, start a program, change
/// the kernel, the clock, mounts or namespaces, and the interfaces through which most kernel
/// faults of late years were reached.
const REFUSED: &[libc::c_long] = &[
    // other processes
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    // programs
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_personality,
    // the kernel
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_syslog,
    libc::SYS_quotactl,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    // the clock and the name
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    // mounts and namespaces
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsmount,
    libc::SYS_fsconfig,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_chroot,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_open_by_handle_at,
];

/// What there is only on this machine's kind of processor.
#[cfg(target_arch = "x86_64")]
const REFUSED_HERE: &[libc::c_long] = &[libc::SYS_iopl, libc::SYS_ioperm, libc::SYS_modify_ldt];
#[cfg(not(target_arch = "x86_64"))]
const REFUSED_HERE: &[libc::c_long] = &[];

/// On x86-64 every call can also be made by the x32 numbers, on kernels that have them: those
/// with this bit, and for the calls whose arguments differ a range of their own.
#[cfg(target_arch = "x86_64")]
const X32: libc::c_long = 0x4000_0000;
#[cfg(target_arch = "x86_64")]
const X32_OWN: std::ops::RangeInclusive<libc::c_long> = 512..=547;

pub(crate) fn restrict(off: &Off) -> Result<Protection, ConfineError> {
    if let Some(reason) = &off.seccomp {
        return Ok(Protection::off(NAME, reason));
    }
    let refused = |problem: &dyn std::fmt::Display| ConfineError::Refused {
        what: NAME,
        problem: problem.to_string(),
    };
    let Ok(arch) = TargetArch::try_from(std::env::consts::ARCH) else {
        let detail = format!("no filter for {}", std::env::consts::ARCH);
        return Ok(Protection::new(NAME, State::Missing, detail));
    };
    let program = program(arch).map_err(|error| refused(&error))?;
    match seccompiler::apply_filter(&program) {
        Ok(()) => {
            let detail = format!(
                "{} system calls are refused",
                REFUSED.len() + REFUSED_HERE.len()
            );
            Ok(Protection::new(NAME, State::InForce, detail))
        }
        // A kernel without it, or a container that forbids it.
        Err(error) => Ok(Protection::new(NAME, State::Missing, error.to_string())),
    }
}

fn program(arch: TargetArch) -> Result<BpfProgram, seccompiler::BackendError> {
    let numbers = REFUSED.iter().chain(REFUSED_HERE).copied();
    #[cfg(target_arch = "x86_64")]
    let numbers = numbers
        .flat_map(|number| [number, number | X32])
        .chain(X32_OWN.map(|number| number | X32));
    // No condition: whatever the arguments are.
    let rules: BTreeMap<i64, Vec<seccompiler::SeccompRule>> =
        numbers.map(|number| (number, Vec::new())).collect();
    let errno = u32::try_from(libc::EPERM).unwrap_or(1);
    SeccompFilter::new(
        rules,
        SeccompAction::Allow,
        SeccompAction::Errno(errno),
        arch,
    )?
    .try_into()
}
