/** Which commit is being built. */

/** A commit. */
export interface Commit {
  /** In hex; followed by `-dirty` when files have been changed since. */
  readonly name: string;
  /** When it was made, in seconds since 1970. */
  readonly time: number;
  /** Name and address. */
  readonly author: string;
  /** Whether it has this tag, and nothing has been changed since. */
  isTagged(tag: string): boolean;
}

/** The commit that a repository's folder is at; undefined where there is no git, or no repository with this root folder. */
export async function commitOf(folder: string): Promise<Commit | undefined> {
  const lines = async (...args: string[]) => {
    // Root builds what is another user's, too, and leaves it theirs.
    const given = ["--no-optional-locks", "-c", `safe.directory=${folder.replace(/\/$/, "")}`, "-C", folder, ...args];
    const { success, stdout } = await new Deno.Command("git", { args: given, stderr: "null" }).output();
    return success ? new TextDecoder().decode(stdout).trimEnd().split("\n") : undefined;
  };
  try {
    // How deep the folder is in a repository, if it is in one.
    if ((await lines("rev-parse", "--show-prefix"))?.join() !== "") return undefined;
    const [hash, time, author] = await lines("log", "-1", "--format=%H%n%ct%n%an <%ae>") ?? [];
    const changed = await lines("status", "--porcelain", "--untracked-files=no");
    const tags = await lines("tag", "--points-at", "HEAD");
    if (hash === undefined || author === undefined || changed === undefined || tags === undefined) return undefined;
    const isDirty = changed.join() !== "";
    return {
      name: isDirty ? `${hash}-dirty` : hash,
      time: Number(time),
      author,
      isTagged: (tag) => !isDirty && tags.includes(tag),
    };
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return undefined;
    throw error;
  }
}
