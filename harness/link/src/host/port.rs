//! The packet thread's ends of the devices: where it reads what a node sends and writes what a node
//! receives.
//!
//! Both kinds speak of packets in the same way, a `virtio_net_hdr` first, see
//! [`offload`](super::offload).

use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::offload::ETHERNET_BYTES;
use super::sys;

/// A device's end for the packet thread.
#[derive(Debug)]
pub(super) struct Port {
    file: File,
    /// In front of what is written, and as long in front of what is read.
    link_header: Vec<u8>,
}

impl Port {
    /// The packet end of a TUN device.
    pub(super) fn tun(file: File) -> Self {
        Self {
            file,
            link_header: Vec::new(),
        }
    }

    /// A packet socket on an Ethernet device at whose other end the node has this address.
    pub(super) fn socket(socket: OwnedFd, node: [u8; 6], own: [u8; 6]) -> Self {
        const IPV4: [u8; 2] = [0x08, 0x00];
        let header: [u8; ETHERNET_BYTES] = std::array::from_fn(|at| match at {
            0..6 => node[at],
            6..12 => own[at - 6],
            _ => IPV4[at - 12],
        });
        Self {
            file: File::from(socket),
            link_header: header.to_vec(),
        }
    }

    /// The header of the device's own layer.
    pub(super) fn link_header(&self) -> &[u8] {
        &self.link_header
    }

    /// Reads one packet, headers first.
    pub(super) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.file).read(buffer)
    }

    /// Writes one packet, headers first.
    pub(super) fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        (&self.file).write_vectored(parts)
    }

    /// Packets that came faster than they were read, since this was last asked; 0 for a TUN
    /// device, which counts them itself.
    pub(super) fn drops(&self) -> u64 {
        match self.link_header.is_empty() {
            true => 0,
            // Whatever cannot be asked has dropped nothing that is known.
            false => sys::packet_drops(self.as_fd()).unwrap_or(0),
        }
    }
}

impl AsFd for Port {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
