"""A context model is taken apart into its fields and put together again."""

from __future__ import annotations

import typing

import pytest
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, field_validator
from pydantic.fields import FieldInfo

from flujo.errors import ContextMismatchError, NotSerializableError
from flujo.state.codec import Codec, fields_of, restore_model

codec = Codec()


class Shop(BaseModel):
    total: int = 0
    names: list[str] = Field(default_factory=list)
    need: typing.Any

    @field_validator("total")
    @classmethod
    def check(cls, total: int) -> int:
        if total < 0:
            raise ValueError("negative")
        return total


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    x: int = 1
    _note: str = PrivateAttr(default="n")
    _later: int


def test_fields_are_the_values_themselves_in_a_new_dict() -> None:
    """The mapping is the caller's; the values are the model's, not copies."""
    shop = Shop(need=[1])
    fields = fields_of(shop)
    assert fields == {"total": 0, "names": [], "need": [1]}
    assert fields["need"] is shop.need
    fields["more"] = 1
    assert "more" not in shop.__dict__


def test_a_context_comes_back_through_its_encoded_fields() -> None:
    """Extras and private attributes are fields too; a name that starts with `$` is kept apart."""
    model = Open(**{"a": (1,), "$private": 2, "$type": 3})
    model._note = "changed"
    fields = fields_of(model)
    assert fields["$private"] == {"_note": "changed"}
    stored = {name: codec.decode(data) for name, data in codec.encode_fields(fields).items()}
    again = restore_model(Open, stored)
    assert again == model
    assert again.model_extra == model.model_extra
    assert again._note == "changed"


def test_no_validator_runs() -> None:
    """A value that was saved is not judged again."""
    assert restore_model(Shop, {"total": -5, "need": 1}).total == -5


def test_a_missing_field_takes_its_default() -> None:
    """Each restored model gets its own default, and counts the field as not set."""
    first, second = restore_model(Shop, {"need": 1}), restore_model(Shop, {"need": 1})
    first.names.append("x")
    assert second.names == []
    assert first.model_fields_set == {"need"}
    assert restore_model(Open, {})._note == "n"


@pytest.mark.skipif("default_factory_takes_validated_data" not in dir(FieldInfo), reason="new in pydantic 2.10")
def test_a_default_may_depend_on_the_other_fields() -> None:
    """A factory that takes the data gets what is there."""

    class Derived(BaseModel):
        a: int
        b: int = Field(default_factory=lambda data: data["a"] + 1)

    assert restore_model(Derived, {"a": 1}).b == 2


def test_fields_that_do_not_fit_are_all_named() -> None:
    """The error lists what is missing and what is left over, and says what to do."""
    with pytest.raises(ContextMismatchError) as caught:
        restore_model(Shop, {"total": 1, "gone": 1, "left": 2})
    error = caught.value
    assert (error.missing, error.unknown) == (["need"], ["gone", "left"])
    assert "'need'" in str(error) and "'gone', 'left'" in str(error)
    assert "register a new version of the pipeline" in error.hint


def test_a_private_attribute_that_is_gone_is_named() -> None:
    """A model that no longer has a private attribute does not fit what was saved of it."""
    with pytest.raises(ContextMismatchError, match="no longer has '_old'"):
        restore_model(Open, {"$private": {"_old": 1}})


def test_an_attribute_that_is_no_field_is_refused() -> None:
    """What was smuggled into a model would be lost."""
    shop = Shop(need=1)
    shop.__dict__["hidden"] = 1
    with pytest.raises(NotSerializableError, match=r"^context has an attribute 'hidden'"):
        fields_of(shop)
