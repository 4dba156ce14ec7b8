//! The `flipside` command; all of it is in [`flipside::cli`].

fn main() -> std::process::ExitCode {
    flipside::cli::main()
}
