# SPDX-License-Identifier: Apache-2.0
"""libnftables through ctypes: run a script as one transaction, read the ruleset as JSON."""

from __future__ import annotations

import ctypes
import threading
from typing import Any

from igdpcp import jsonio
from igdpcp.errors import OurFault, RulesetError

LIBRARY = "libnftables.so.1"

_OUTPUT_JSON = 1 << 4  # NFT_CTX_OUTPUT_JSON
_OUTPUT_TERSE = 1 << 11  # NFT_CTX_OUTPUT_TERSE: sets without their elements

_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "nft_ctx_new": (ctypes.c_void_p, [ctypes.c_uint32]),
    "nft_ctx_free": (None, [ctypes.c_void_p]),
    "nft_ctx_buffer_output": (ctypes.c_int, [ctypes.c_void_p]),
    "nft_ctx_buffer_error": (ctypes.c_int, [ctypes.c_void_p]),
    "nft_ctx_get_output_buffer": (ctypes.c_char_p, [ctypes.c_void_p]),
    "nft_ctx_get_error_buffer": (ctypes.c_char_p, [ctypes.c_void_p]),
    "nft_ctx_output_set_flags": (None, [ctypes.c_void_p, ctypes.c_uint]),
    "nft_run_cmd_from_buffer": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_char_p]),
}


# Contexts do not make threads independent of one another: what prints JSON keeps its place in a variable of the whole
# process, and aborts when another thread has moved it.
_one_thread = threading.Lock()


def load() -> ctypes.CDLL:
    """The library with its functions typed; raises OurFault that names the package to install."""
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise OurFault(f"{LIBRARY} is missing: install nftables-json (OpenWrt) or libnftables1 (Debian)") from error
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


class Nft:
    """One libnftables context. It belongs to the thread, and to the network namespace, that made it."""

    def __init__(self) -> None:
        self._library = load()
        with _one_thread:
            self._context = self._library.nft_ctx_new(0)
        if not self._context:
            raise OurFault("libnftables gives no context: no nf_tables in this kernel, or not root")
        self._library.nft_ctx_buffer_output(self._context)
        self._library.nft_ctx_buffer_error(self._context)

    def run(self, script: str) -> None:
        """Commit the script as one transaction; raises RulesetError with the kernel's words."""
        self._call(script, 0)

    def query(self, command: str, *, elements: bool = True) -> list[dict[str, Any]]:
        """The objects that a ``list`` command names; without ``elements``, sets come empty and cheap."""
        text = self._call(command, _OUTPUT_JSON if elements else _OUTPUT_JSON | _OUTPUT_TERSE)
        try:
            answer = jsonio.loads(text) if text.strip() else {}
        except ValueError as error:
            raise OurFault(f"{LIBRARY} was built without JSON: install nftables-json") from error
        objects: list[dict[str, Any]] = answer.get("nftables", [])
        return objects

    def close(self) -> None:
        """Give the context back; the ruleset stays as it is."""
        if self._context:
            with _one_thread:
                self._library.nft_ctx_free(self._context)
            self._context = None

    def _call(self, text: str, flags: int) -> str:
        self._library.nft_ctx_output_set_flags(self._context, flags)
        with _one_thread:
            status = self._library.nft_run_cmd_from_buffer(self._context, text.encode())
        output: bytes = self._library.nft_ctx_get_output_buffer(self._context) or b""
        errors: bytes = self._library.nft_ctx_get_error_buffer(self._context) or b""
        if status:
            raise RulesetError(_first_line(errors.decode(errors="replace")))
        return output.decode(errors="replace")


def _first_line(errors: str) -> str:
    """The message without the script that libnftables quotes below it."""
    lines = errors.strip().splitlines()
    return lines[0] if lines else "nftables refused the change and does not say why"
