"""What the document cannot say of requests."""

import schemathesis

KEY_CHARACTERS_MAX = KEY_BYTES_MAX = 1024


@schemathesis.hook
def filter_path_parameters(context, path_parameters):
    """A key is bounded in bytes, a JSON schema bounds characters: leave out the keys between."""
    key = (path_parameters or {}).get("key")
    if not isinstance(key, str) or len(key) > KEY_CHARACTERS_MAX:
        return True
    return len(key.encode(errors="surrogatepass")) <= KEY_BYTES_MAX
