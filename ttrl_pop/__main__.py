"""`python -m ttrl_pop` is `ttrl-pop` in the environment of that Python."""

from ttrl_pop.cli.app import main

if __name__ == "__main__":
    main()
