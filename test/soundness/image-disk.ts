/** Disks of qcow and cow images over stores, opened for reading or by the program's own writers. */
import type { Store } from '../../src/io/store.js'
import { ReusedBuffers } from '../support/image.js'
import { type OpenDisk, openRead, openWritten } from '../support/store-image.js'
import { type Changes, changesOf, type DiskFiles } from '../support/writable.js'

/** The program's own writer, of one thread, with `changes`. */
export const openQcow = (files: DiskFiles, changes: Changes = {}): OpenDisk =>
  openWritten('qcow', files, changesOf(changes))

/**
 * Returns what a reader sees of the file. Throws what opening or reading throws.
 * @param reused holds the disk until the next call with it; by default the disk is the caller's to keep
 */
export const readQcow = (files: DiskFiles<Store>, reused = new ReusedBuffers()): Buffer =>
  reused.readAll(openRead('qcow', files).view, 0)

/** As `openQcow`. */
export const openCow = (files: DiskFiles, changes: Changes = {}): OpenDisk =>
  openWritten('cow', files, changesOf(changes))

/** As `readQcow`. */
export const readCow = (files: DiskFiles<Store>, reused = new ReusedBuffers()): Buffer =>
  reused.readAll(openRead('cow', files).view, 0)
