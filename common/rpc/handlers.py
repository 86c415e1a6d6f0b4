"""What the library calls to serve a method, seen by an interceptor: the same handler with another behaviour.

Knows nothing of why an interceptor wraps it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias, cast

import grpc

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
    make = cast("Callable[..., Handler]", _MAKERS[handler.request_streaming, handler.response_streaming])
    return make(
        behaviour,
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )
