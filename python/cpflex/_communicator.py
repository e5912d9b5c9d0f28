# How ranks exchange messages, and so where they compute: threads of this process, MPI or a transport written in Python on
# the CPU; NCCL or threads that share GPUs on those.
import ctypes

from cpflex import _library
from cpflex._program import _new, library

TIMED_OUT, UNAVAILABLE = 5, 3  # of cpflex_code
NCCL_ID_BYTES = 128


class Communicator:
    """One rank's end of a group. Used by one thread at a time; of no more use after an error."""

    def __init__(self, address, bridge=None):
        lib = library()
        self._bridge = bridge
        self._handle = _library.Handle(lib, address, lib.communicator_free)
        self.rank, self.world_size = lib.communicator_rank(address), lib.communicator_world_size(address)

    @classmethod
    def mpi(cls, plugin=None):
        """This process of an MPI job (`mpirun -n 4 python ...`)."""
        return cls(_new(library().communicator_of_mpi, None if plugin is None else str(plugin).encode()))

    @classmethod
    def nccl(cls, group_id, rank, world_size, device=0, deadline_seconds=60):
        """This rank of a group of GPUs, one each; `group_id` is what one of them got from `nccl_id()`. Waits until all ranks
        have joined."""
        if not isinstance(group_id, bytes) or len(group_id) != NCCL_ID_BYTES:
            raise TypeError(f"group_id is {group_id!r:.40}; expected the {NCCL_ID_BYTES} bytes of nccl_id()")
        return cls(_new(library().communicator_of_nccl, group_id, rank, world_size, device, deadline_seconds))

    @classmethod
    def over_nccl(cls, address, device=0, deadline_seconds=60):
        """The same over the caller's own ncclComm_t, given by its address, which stays the caller's."""
        return cls(_new(library().communicator_of_nccl_comm, address, device, deadline_seconds))

    @classmethod
    def over(cls, transport):
        """Messages carried by a Python object: `rank` and `world_size`; `start(ticket, messages)` starts (peer, is_send,
        address, size) tuples and returns; `wait(ticket, seconds)` returns when all of a ticket have left and arrived and
        raises otherwise. Messages between two ranks match in the order in which they were started."""
        bridge = _Bridge(transport)
        return cls(_new(library().communicator_of_transport, bridge.struct), bridge)

    def take_raised(self):
        """What a transport written in Python raised last, once; None for others."""
        raised = self._bridge and self._bridge.raised
        if raised:
            self._bridge.raised = None
        return raised

    def abort(self, reason):
        """Tells the other ranks that this one gives up. With MPI it ends the job."""
        library().communicator_abort(self._handle.address, str(reason).encode())


class _Bridge:
    """The C functions of a transport. `raised` is what it raised, of which the library hears the text alone."""

    def __init__(self, transport):
        self.transport, self.raised = transport, None
        self.struct = _library.Transport(rank=transport.rank, world_size=transport.world_size)
        self.struct.start, self.struct.wait = _library.START(self._start), _library.WAIT(self._wait)

    def _call(self, function, arguments, text, size):
        try:
            function(*arguments)
            return 0
        except BaseException as error:
            self.raised = error
            message = f"{type(error).__name__}: {error}".encode()[:size - 1] + b"\0"
            ctypes.memmove(text, message, len(message))
            return TIMED_OUT if isinstance(error, TimeoutError) else UNAVAILABLE

    def _start(self, user_data, ticket, step, purpose, messages, count, text, size):
        listed = [(message.peer, bool(message.is_send), message.data, message.size) for message in messages[:count]]
        return self._call(self.transport.start, (ticket, listed), text, size)

    def _wait(self, user_data, ticket, seconds, text, size):
        return self._call(self.transport.wait, (ticket, seconds), text, size)


def nccl_id():
    """The name of a group of GPUs to be, as bytes: made by one rank, brought to all by the caller."""
    name = ctypes.create_string_buffer(NCCL_ID_BYTES)
    library().nccl_id(name)
    return name.raw


def cuda_threads(world_size, devices=(0,)):
    """The communicators of ranks that are threads of this process, on the GPUs `devices` in turn; ranks may share one."""
    gpus = (ctypes.c_int32 * len(devices))(*devices)
    addresses = (ctypes.c_void_p * max(world_size, 1))()
    library().communicators_of_cuda_threads(world_size, gpus, len(devices), addresses)
    return [Communicator(address) for address in addresses]


def threads(world_size):
    """The communicators of ranks that are threads of this process."""
    lib = library()
    group = _library.Handle(lib, _new(lib.thread_group_create, world_size), lib.thread_group_free)
    return [Communicator(_new(lib.communicator_of_threads, group.address, rank)) for rank in range(world_size)]
