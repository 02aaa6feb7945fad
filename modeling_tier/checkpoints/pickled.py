"""
Checks the requests of a pickle of tensors, without reading its tensors or calling anything that it names.

A file of a few bytes can request gigabytes: by a call that allocates memory (`bytearray`), by a tensor larger than its
storage, which torch would then enlarge, or by a storage larger than the file. So a pickle is read here first, with
placeholders for everything that it calls.
"""

import pickle
import pickletools
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from typing import Any, BinaryIO

import torch

PICKLE_LIMIT = 2**23  # bytes of a pickle without its tensors; large models need about 1 MB
WORK_LIMIT = 2**25  # values that are read or hashed; large models need about a million

# Classes that training scripts save beside the tensors: arguments, and numpy's numbers. Not needed here.
BOOKKEEPING = (
    "argparse.Namespace",
    "_codecs.encode",
    "numpy.dtype",
    "numpy.ndarray",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
)
# Other calls that a state dict may request, which do not allocate memory
HARMLESS = (
    "torch.device",
    "torch.nn.parameter.Parameter",
    "torch.serialization._get_layout",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch._utils._rebuild_meta_tensor_no_storage",
    "torch._utils._rebuild_sparse_tensor",
)
STORAGES = {  # torch's storages, with the bytes of one element
    **dict.fromkeys(("ByteStorage", "CharStorage", "BoolStorage"), 1),
    **dict.fromkeys(("HalfStorage", "BFloat16Storage", "ShortStorage"), 2),
    **dict.fromkeys(("FloatStorage", "IntStorage"), 4),
    **dict.fromkeys(("DoubleStorage", "LongStorage", "ComplexFloatStorage"), 8),
    "ComplexDoubleStorage": 16,
}
# The operations that the `weights_only` reader of torch knows. Some of the others allocate memory themselves.
OPERATIONS = {
    *("PROTO", "STOP", "MARK", "GLOBAL", "NEWOBJ", "REDUCE", "BUILD", "BINPERSID"),
    *("APPEND", "APPENDS", "SETITEM", "SETITEMS", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
    *("EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET", "NONE", "NEWFALSE", "NEWTRUE"),
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING"),
    *("BINGET", "LONG_BINGET", "BINPUT", "LONG_BINPUT"),
}


class CheckpointRefused(ValueError):
    """A file was refused; the message gives the reason."""


class Placeholder:
    """Stands for an object that is not needed, and discards its arguments."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "Placeholder":
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class Arguments(Placeholder):
    """Stands for an `argparse.Namespace`: only its values."""

    values: Mapping = {}

    def __setstate__(self, state: Any) -> None:
        self.values = state if isinstance(state, dict) else {}


class ElementType:
    """Stands for a dtype, or for the storage of one."""

    def __init__(self, itemsize: int):
        self.itemsize = itemsize


class ClaimReader(pickle.Unpickler):
    """
    Reads a pickle with placeholders for all that it calls, and checks its storages and tensors.

    Args:
        file (`BinaryIO`): At the start of the pickle; a whole one of moderate size, see [`read_claims`].
        name (`str`): Of the file, for errors.
        bytes_of (`Callable`): From the key of a storage to the bytes that the file holds for it.
        classes (`Collection[str]`): Other classes that it may call.
    """

    def __init__(self, file: BinaryIO, name: str, bytes_of: Callable[[str], int], classes: Collection[str]):
        super().__init__(file, encoding="bytes")
        self.name, self.bytes_of, self.classes = name, bytes_of, classes
        self.storages: dict[str, int] = {}  # bytes by key

    def find_class(self, module: str, name: str) -> Any:
        whole = f"{module}.{name}"
        if whole == "collections.OrderedDict":
            return OrderedDict
        if whole == "torch.Size":
            return tuple
        if whole in ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"):
            return self.rebuild
        if whole == "torch._utils._rebuild_tensor_v3":
            return self.rebuild_with_type
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return ElementType(dtype.itemsize)
        if module == "torch" and name in STORAGES:
            return ElementType(STORAGES[name])
        if whole == "torch.storage.UntypedStorage":
            return ElementType(1)
        if whole == "argparse.Namespace":
            return Arguments
        if whole in HARMLESS or whole in BOOKKEEPING or whole in self.classes:
            return Placeholder
        raise CheckpointRefused(
            f"{self.name} requests a call of {whole} while it is read, which tensors do not need, so it was not read. "
            "Save only its tensors with its own code: torch.save(model.state_dict(), 'tensors.pt')."
        )

    def persistent_load(self, identifier: tuple) -> tuple[int, int]:
        """Bytes of a storage, and of one element."""
        _, element, key, _, count, *_ = identifier
        if not isinstance(key, (str, bytes)) or type(count) is not int:
            raise pickle.UnpicklingError("a storage without a name or a size")
        key, size = key.decode() if isinstance(key, bytes) else key, count * element.itemsize
        if not 0 <= size <= self.bytes_of(key) or self.storages.setdefault(key, size) != size:
            self.refuse_sizes()
        return size, element.itemsize

    def rebuild(self, storage: tuple[int, int], offset: int, size: tuple, stride: tuple, *rest: Any) -> None:
        """Checks that a tensor lies within its storage."""
        available, itemsize = storage
        if not all(type(number) is int for number in (offset, *size, *stride)):
            raise pickle.UnpicklingError("a tensor without a size")
        end = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1
        if min((offset, *size, *stride)) < 0 or 0 not in size and end * itemsize > available:
            self.refuse_sizes()

    def rebuild_with_type(
        self,
        storage: tuple[int, int],
        offset: int,
        size: tuple,
        stride: tuple,
        requires_grad: bool,
        hooks: Any,
        element: ElementType,
        *rest: Any,
    ) -> None:
        self.rebuild((storage[0], element.itemsize), offset, size, stride)

    def refuse_sizes(self) -> None:
        raise CheckpointRefused(f"{self.name} describes tensors larger than the file itself, so it was not read.")


def read_claims(
    file: BinaryIO, name: str, bytes_of: Callable[[str], int], classes: Collection[str] = ()
) -> tuple[Any, dict[str, int]]:
    """
    Checks the pickle at the current position of a file; see [`ClaimReader`] for the arguments.

    Returns:
        `tuple`: the content, with `None` for each tensor and placeholders for other objects, and the bytes of each
        storage.

    Raises:
        CheckpointRefused: It requests more memory than the file has bytes, or a call that tensors do not need.
        Exception: It is damaged, as `pickle` reports.
    """
    start = file.tell()
    for count, (operation, argument, position) in enumerate(pickletools.genops(file)):
        far = operation.name in ("BINPUT", "LONG_BINPUT") and argument > count  # `pickle` allocates up to there
        if operation.name not in OPERATIONS or far or position - start > PICKLE_LIMIT:
            raise pickle.UnpicklingError(operation.name)
    file.seek(start)
    check_work(file)
    file.seek(start)
    reader = ClaimReader(file, name, bytes_of, classes)
    return reader.load(), reader.storages


def check_work(file: BinaryIO) -> None:
    """
    Limits the values that `pickle` has to process for the pickle at the current position of a file. A tuple that is
    doubled 60 times takes 120 bytes, but 2^60 steps as the key of a dictionary.

    Raises:
        pickle.UnpicklingError: There are more than [`WORK_LIMIT`].
    """
    stack: list[int | None] = []  # values within each, `None` for a mark
    memo: dict[int, int] = {}
    work = 0
    for operation, argument, _ in pickletools.genops(file):
        if operation.name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1] or 1
            continue
        if operation.name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
            continue
        taken = []
        for needed in reversed(operation.stack_before):
            if needed is pickletools.stackslice:
                while stack[-1] is not None:
                    taken.append(stack.pop())
            else:
                taken.append(stack.pop() or 0)
        work += sum(taken)
        if work > WORK_LIMIT:
            raise pickle.UnpicklingError("too many nested values")
        for made in operation.stack_after:
            if made is pickletools.markobject:
                stack.append(None)
            else:  # lists and dictionaries are never hashed: their content counts once
                stack.append(1 + sum(taken) if operation.name.startswith(("TUPLE", "REDUCE", "NEWOBJ")) else 1)


def called_names(file: BinaryIO) -> set[str]:
    """The names that the pickle at the current position of a file uses, as `module.name`."""
    return {argument.replace(" ", ".") for op, argument, _ in pickletools.genops(file) if op.name == "GLOBAL"}
