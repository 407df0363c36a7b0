"""The tables of a store in PostgreSQL: making them, bringing older ones to this version, printing what that takes."""

from __future__ import annotations

import re
from pkgutil import get_data

from flujo.errors import ConfigurationError, StoreFormatError, StoreUnavailableError
from flujo.state.backends.postgres.connection import Connection

# What brings a store from each version to the next, in SQL; the first makes a new one.
MIGRATIONS: tuple[str, ...] = ("schema.sql",)
SCHEMA_VERSION = len(MIGRATIONS)
DEFAULT = "flujo"
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,39}")
_STAMP = (
    "INSERT INTO flujo.meta (name, value) VALUES ('schema_version', '{version}')\n"
    "ON CONFLICT (name) DO UPDATE SET value = EXCLUDED.value;\n"
)


def check_name(schema: str) -> str:
    """Return the name; raises ConfigurationError for one that would have to be quoted."""
    if not _NAME.fullmatch(schema) or schema.startswith("pg_"):
        raise ConfigurationError(
            f"{schema!r} cannot be the schema's name.",
            hint="Use up to 40 lower-case letters, digits and underscores, and no pg_ at the beginning.",
        )
    return schema


def script(name: str) -> str:
    """Return a file of SQL that lies in this folder."""
    return (get_data(__name__, name) or b"").decode()


def named(text: str, schema: str) -> str:
    """Return the SQL for a schema of that name: it is written for one that is called flujo."""
    return text if schema == DEFAULT else re.sub(r"\bflujo\.", f"{schema}.", text)


def migrations(schema: str, since: int = 0) -> str:
    """Return what makes the schema, or brings it from version `since` to this one."""
    parts = [] if since else [f"CREATE SCHEMA IF NOT EXISTS {schema};\n"]
    parts += [named(script(name), schema) for name in MIGRATIONS[since:]]
    parts.append(named(_STAMP.format(version=SCHEMA_VERSION), schema))
    return "\n".join(parts)


def bring(connection: Connection, schema: str, place: str) -> None:
    """See that the schema is there, in this version. Several processes may do so at once.

    Raises StoreFormatError, StoreUnavailableError, psycopg.Error.
    """
    encoding = _one(connection, "SHOW server_encoding")
    if encoding != "UTF8":
        raise StoreUnavailableError(
            f"The database keeps text as {encoding}, not as UTF8 ({place}).",
            hint="Make one with ENCODING 'UTF8' TEMPLATE template0.",
            path=place,
        )
    if _version(connection, schema, place) == SCHEMA_VERSION:
        return
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(hashtext('flujo schema'), hashtext($1))", (schema,))
        version = _version(connection, schema, place)  # somebody else may have been quicker
        if version == SCHEMA_VERSION:
            return
        text = migrations(schema, version)
        if (
            _one(connection, "SELECT 1 FROM pg_namespace WHERE nspname = $1", schema) is not None
        ):  # else it takes a right on the database
            text = text.replace(f"CREATE SCHEMA IF NOT EXISTS {schema};", "")
        connection.execute(text.encode())


def _version(connection: Connection, schema: str, place: str) -> int:
    # Not by to_regclass: it may answer from a cache that does not know yet what another process has just made.
    found = connection.execute(
        "SELECT relname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace"
        " WHERE nspname = $1 AND relname IN ('meta', 'run', 'log', 'workflow_state')",
        (schema,),
    ).fetchall()
    if ("meta",) not in found:
        if found:
            raise _foreign(schema, place)
        return 0
    try:
        with connection.transaction():
            value = _one(connection, named("SELECT value FROM flujo.meta WHERE name = 'schema_version'", schema))
    except Exception as error:
        if getattr(error, "sqlstate", None) == "42703":
            raise _foreign(schema, place) from error
        raise
    version = int(str(value)) if re.fullmatch("[0-9]{1,9}", str(value)) else 0
    if version > SCHEMA_VERSION:
        raise StoreFormatError(
            f"The schema {schema} was made by a newer flujo (version {version}; this one knows {SCHEMA_VERSION}).",
            hint="Upgrade flujo; nothing was changed.",
            path=place,
            schema_version=version,
        )
    if version < 1:
        raise _foreign(schema, place)
    return version


def _foreign(schema: str, place: str) -> StoreFormatError:
    return StoreFormatError(
        f"The schema {schema} has tables that are called like flujo's, but is no flujo store ({place}).",
        hint="Give another schema.",
        path=place,
    )


def _one(connection: Connection, query: str, *values: object) -> object:
    found = connection.execute(query.encode(), values or None).fetchone()
    return found[0] if found is not None else None
