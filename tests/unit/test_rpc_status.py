"""The table of errors is total and survives the wire."""

import errno

import grpc
import pytest

from alluxio_like import errors
from alluxio_like.rpc import status


def get_tree(root: type[errors.AlluxioLikeError] = errors.AlluxioLikeError) -> list[type[errors.AlluxioLikeError]]:
    found = [root]
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            found += get_tree(child)
    return found


@pytest.mark.parametrize("kind", get_tree())
def test_table_is_total(kind: type[errors.AlluxioLikeError]) -> None:
    disposition = errors.TABLE[kind]
    assert disposition.errno in errno.errorcode
    assert grpc.StatusCode[disposition.grpc_status] is not grpc.StatusCode.OK
    assert "code" in vars(kind), "each class has a code of its own"
    assert errors.BY_CODE[kind.code] is kind
    assert kind.__name__ in (errors.__doc__ or "")


def test_codes_are_distinct() -> None:
    codes = [kind.code for kind in get_tree()]
    assert len(set(codes)) == len(codes) == len(errors.TABLE)


def test_every_status_without_detail_means_something() -> None:
    assert set(status._WITHOUT_DETAIL) == set(grpc.StatusCode)
    for kind in status._WITHOUT_DETAIL.values():
        assert kind in errors.TABLE


@pytest.mark.parametrize("kind", get_tree())
def test_error_survives_the_wire(kind: type[errors.AlluxioLikeError]) -> None:
    error = kind("what happened", subject="/a/b\udcff")
    back = status.decode_error(status.encode_error(error))
    assert type(back) is kind
    assert back.message == "what happened"
    assert back.subject == "/a/b\\udcff"


def test_long_messages_fit_metadata() -> None:
    assert len(status.encode_error(errors.NotFound("\udcff" * 10**5, subject="x" * 10**5))) < 20_000


def test_code_of_a_newer_peer() -> None:
    assert type(errors.make_error("invented_later", "x")) is errors.AlluxioLikeError
