/** A file that has been opened, before anything of it is read. */
import type fs from 'node:fs'
import type { SourceSpec } from './file-spec.js'

/** 'write' includes reading. */
export type Access = 'read' | 'write'

export interface OpenedFile {
  /** The name that was given, made absolute; symbolic links are not resolved. Of a remote file, its address. */
  readonly path: string
  readonly fd: number
  readonly stat: fs.BigIntStats
  /** Undefined for a file of this machine. */
  readonly source?: SourceSpec
  /** Present if it is a part of the file that is open: see FilePart. */
  readonly part?: { readonly path: string; readonly startAt: number; readonly sizeBytes: number }
}
