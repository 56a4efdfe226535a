//! The system calls that no crate wraps. All of this crate's unsafe code but `pre_exec` is here.

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::libc;

/// The kernel's `struct ifreq`: a name and a union, of which 24 bytes suffice on every target.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    value: [u8; 24],
}

impl InterfaceRequest {
    fn new(name: &str) -> io::Result<Self> {
        let mut request = Self {
            name: [0; libc::IFNAMSIZ],
            value: [0; 24],
        };
        if name.len() >= libc::IFNAMSIZ {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "interface name too long",
            ));
        }
        request.name[..name.len()].copy_from_slice(name.as_bytes());
        Ok(request)
    }
}

/// Makes an open `/dev/net/tun` the packet end of a new TUN device without packet information,
/// with a `virtio_net_hdr` of 10 bytes in front of every packet, and lets the kernel leave TCP
/// segmentation over IPv4 and checksums to the reader.
#[expect(unsafe_code, reason = "ioctls with a structure and with a number")]
pub(super) fn attach_tun(tun: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    let mut request = InterfaceRequest::new(name)?;
    let flags = (libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    request.value[..mem::size_of_val(&flags)].copy_from_slice(&flags.to_ne_bytes());
    // SAFETY: TUNSETIFF reads and writes one ifreq, which `request` is at least as large as and
    // which outlives the call.
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    check(result.into())?;
    let offload = libc::c_ulong::from(libc::TUN_F_CSUM | libc::TUN_F_TSO4);
    // SAFETY: TUNSETOFFLOAD takes a number and touches no memory of the caller.
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETOFFLOAD, offload) };
    check(result.into())
}

/// Opens a packet socket that exchanges IPv4 frames with a device of the calling thread's
/// namespace, with a `virtio_net_hdr` in front of each, and does not see its own.
#[expect(unsafe_code, reason = "a system call with a structure")]
pub(super) fn packet_socket(index: u32) -> io::Result<OwnedFd> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    const IPV4: u16 = 0x0800;
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    // Without a protocol it receives nothing before it is bound to the device.
    let socket = socket(AddressFamily::Packet, SockType::Raw, flags, None)?;
    set_packet_option(socket.as_fd(), libc::PACKET_VNET_HDR, 1)?;
    set_packet_option(socket.as_fd(), PACKET_IGNORE_OUTGOING, 1)?;
    // SAFETY: sockaddr_ll is a plain structure for which all zero is a value.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = IPV4.to_be();
    address.sll_ifindex = index.cast_signed();
    // SAFETY: bind reads one sockaddr_ll of the size given, which outlives the call.
    let result = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            mem::size_of_val(&address) as libc::socklen_t,
        )
    };
    check(result.into())?;
    Ok(socket)
}

/// `PACKET_IGNORE_OUTGOING`, since Linux 4.20.
const PACKET_IGNORE_OUTGOING: libc::c_int = 23;

#[expect(unsafe_code, reason = "a system call with a pointer")]
fn set_packet_option(socket: BorrowedFd<'_>, option: libc::c_int, value: i32) -> io::Result<()> {
    // SAFETY: the call reads one i32, which outlives it.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            option,
            (&raw const value).cast(),
            mem::size_of_val(&value) as libc::socklen_t,
        )
    };
    check(result.into())
}

/// Packets that a packet socket had no room for, since this was last asked.
#[expect(unsafe_code, reason = "a system call with a structure")]
pub(super) fn packet_drops(socket: BorrowedFd<'_>) -> io::Result<u64> {
    /// The kernel's `struct tpacket_stats`.
    #[repr(C)]
    #[derive(Default)]
    struct Statistics {
        packets: u32,
        drops: u32,
    }
    let mut statistics = Statistics::default();
    let mut size = mem::size_of::<Statistics>() as libc::socklen_t;
    // SAFETY: the call writes at most `size` bytes into the structure, which outlives it.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut statistics).cast(),
            &raw mut size,
        )
    };
    check(result.into())?;
    Ok(statistics.drops.into())
}

/// The kernel's `struct ethtool_value`.
#[repr(C)]
struct EthtoolValue {
    command: u32,
    value: u32,
}

/// `SIOCETHTOOL`.
const ETHTOOL_IOCTL: libc::Ioctl = 0x8946;

/// Runs one of ethtool's set-a-number commands on a device of the calling thread's namespace.
#[expect(
    unsafe_code,
    reason = "an ioctl with a structure that points to another"
)]
pub(super) fn ethtool_set(
    socket: impl AsFd,
    name: &str,
    command: u32,
    value: u32,
) -> io::Result<()> {
    let mut setting = EthtoolValue { command, value };
    let mut request = InterfaceRequest::new(name)?;
    let pointer = (&raw mut setting).expose_provenance();
    request.value[..mem::size_of::<usize>()].copy_from_slice(&pointer.to_ne_bytes());
    // SAFETY: SIOCETHTOOL reads one ifreq and, through the pointer in it, one ethtool_value;
    // both live on this stack until the call returns.
    let result =
        unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), ETHTOOL_IOCTL, &raw mut request) };
    check(result.into())
}

/// Puts the calling thread under `SCHED_FIFO`.
#[expect(unsafe_code, reason = "a system call with a structure")]
pub(super) fn schedule_fifo(priority: i32) -> io::Result<()> {
    // SAFETY: sched_param is a plain structure for which all zero is a value.
    let mut parameters: libc::sched_param = unsafe { mem::zeroed() };
    parameters.sched_priority = priority;
    // SAFETY: the call reads one sched_param, which outlives it; process 0 is the calling thread.
    let result = unsafe {
        libc::sched_setscheduler(
            0,
            libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK,
            &raw const parameters,
        )
    };
    check(result.into())
}

/// The kernel's `struct sched_attr`, first version.
#[repr(C)]
#[derive(Default)]
struct SchedulingAttributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// Asks for a slice of `nanos` for the calling thread under the default policy. Kernels before
/// 6.12 accept and ignore it.
#[expect(unsafe_code, reason = "a system call without a wrapper")]
pub(super) fn schedule_slice(nanos: u64) -> io::Result<()> {
    let attributes = SchedulingAttributes {
        size: mem::size_of::<SchedulingAttributes>() as u32,
        policy: libc::SCHED_OTHER as u32,
        runtime: nanos,
        ..SchedulingAttributes::default()
    };
    // SAFETY: the call reads `size` bytes of one sched_attr, which outlives it.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    check(result)
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
