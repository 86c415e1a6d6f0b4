"""What the library calls to serve a method, seen by an interceptor: the same handler with another behaviour.

Knows nothing of why an interceptor wraps it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, cast

import grpc
from google.protobuf.message import DecodeError

# Types alone: at run time the library's classes take no parameters. Its stubs describe handlers of the sync server;
# what passes here are messages of any type, coroutines and async generators.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Behaviour: TypeAlias = "Callable[[object, Context], object]"

_MAKERS: Final = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


def behaviour_of(handler: Handler) -> Behaviour:
    """What the handler does with a request, or with a stream of them."""
    by_kind = {
        (False, False): handler.unary_unary,
        (False, True): handler.unary_stream,
        (True, False): handler.stream_unary,
        (True, True): handler.stream_stream,
    }
    return cast("Behaviour", by_kind[handler.request_streaming, handler.response_streaming])


def with_behaviour(handler: Handler, behaviour: Behaviour) -> Handler:
    """A handler of the same kind and for the same messages that does something else."""
    return _made(handler, behaviour, handler.request_deserializer)


def reading_anything(handler: Handler, behaviour: Behaviour) -> Handler:
    """As `with_behaviour`; what is no message comes as Unreadable, where the library would end the call by itself."""
    read = handler.request_deserializer
    return _made(handler, behaviour, None if read is None else _tolerant(read))


@dataclass(frozen=True, slots=True)
class Unreadable:
    """What came in place of a message."""

    size_bytes: int


def _tolerant(read: Callable[[bytes], object]) -> Callable[[bytes], object]:
    def read_or_tell(content: bytes) -> object:
        try:
            return read(content)
        except DecodeError:
            return Unreadable(len(content))

    return read_or_tell


def _made(handler: Handler, behaviour: Behaviour, read: Callable[[bytes], object] | None) -> Handler:
    make = cast("Callable[..., Handler]", _MAKERS[handler.request_streaming, handler.response_streaming])
    return make(
        behaviour,
        request_deserializer=read,
        response_serializer=handler.response_serializer,
    )
