"""`python -m ttrl_pop` and the command `ttrl-pop`: everything is imported where an interrupt is handled."""


def main() -> None:
    """Run the command line; Ctrl-C while it is being imported ends it with 130, as later."""
    try:
        from ttrl_pop.cli.app import main as command

        command()
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
