"""``python -m fish_lightning.serve model=EXPORT|CKPT``: answer requests, on a page for people and an API for programs.

Settings are those of ``conf/serve.yaml``; what the server consists of is described in :mod:`fish_lightning.serving`.
"""

import signal

from omegaconf import DictConfig

from fish_lightning.errors import UserError
from fish_lightning.settings.command import as_ckpt, entry_point


def serve(cfg: DictConfig) -> None:
    """Serve a model until SIGTERM or Ctrl-C; requests in flight are answered first.

    Args:
        cfg: the composed ``conf/serve.yaml``.

    Raises:
        UserError: the extra ``serve`` is not installed, there is no model, or the address is taken or has no token.
    """
    try:
        from fish_lightning.serving.address import listener, require_token, server_of, url
        from fish_lightning.serving.app import app_of
    except ModuleNotFoundError as error:
        raise UserError(
            f"serving a model requires the package {error.name}\n"
            "pip install 'fish_lightning[serve]'  (in a checkout: pip install '.[serve]')"
        ) from None

    require_token(cfg.host, cfg.serve.token)
    with listener(cfg.host, cfg.port) as socket:
        app = app_of(cfg)
        print(f"serving {cfg.ckpt}\n\npage  {url(socket)}/\nAPI   {url(socket)}/docs", flush=True)
        signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn raises the signal again when it is done
        server_of(app, cfg.serve.timeout).run(sockets=[socket])


main = entry_point("serve", serve, as_ckpt)

if __name__ == "__main__":
    main()
