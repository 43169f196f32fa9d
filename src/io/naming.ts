/** The facts about a name in an image when the file of that name is opened. */
import type { Folder } from './folders.js'
import type { OpenedFile } from './opened-file.js'

export interface Naming {
  /** The path of the file that contains the name. */
  readonly by: string
  /** The role of the named file: "backing file", "data file". */
  readonly role: string
  /** Folders below which files may be opened. */
  readonly allowed: readonly Folder[]
  /** Returns what the user can do if nothing is at `file`, the absolute path that the name leads to. */
  readonly hint: (file: string) => string
  /** The archive that the file lies in which contains the name. */
  readonly archive?: MemberOpener | undefined
}

/** Opens files of an archive. */
export interface MemberOpener {
  /** Opens the file that an image in the archive names. Throws ImageError. */
  openNamed(name: string, naming: Naming): OpenedFile
  /** Returns the names of the files in the folder of the one at `path`. */
  namesBeside(path: string): string[]
}
