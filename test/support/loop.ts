/**
 * Makes loop devices over a file of a mount, and mounts file systems on them.
 *
 * A kernel that waits for a server which hangs waits for ever. So every command has a limit, and everything that is left is
 * detached when the test ends: with `umount -l` first, since a device in use cannot be detached.
 */
import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import type { Test } from 'tap'
import { attempt, run, tempFolder } from './run.js'

export interface LoopOptions {
  readonly readOnly?: boolean
  /** Whether the device bypasses the page cache of the file below it. */
  readonly direct?: boolean
  /** The start of the device in the file, in bytes. */
  readonly offsetBytes?: number
  /** The size of the device's sectors, in bytes. */
  readonly sectorSize?: number
}

export interface Loop {
  readonly device: string
  detach(): Promise<void>
}

/** A free loop device over `file`, until the test ends at the latest. Needs root. */
export async function loop(t: Test, file: string, options: LoopOptions = {}): Promise<Loop> {
  const { readOnly = false, direct = false, offsetBytes = 0, sectorSize = 512 } = options
  const flags = [
    ...(readOnly ? ['--read-only'] : []),
    `--direct-io=${direct ? 'on' : 'off'}`,
    `--offset=${offsetBytes}`,
    `--sector-size=${sectorSize}`,
  ]
  const device = (await run('losetup', ['--find', '--show', ...flags, file])).trim()
  let isAttached = true
  const detach = async () => {
    if (!isAttached) return
    isAttached = false
    await run('losetup', ['--detach', device])
  }
  t.teardown(() => detach().catch(() => {}))
  return { device, detach }
}

export interface FileSystem {
  readonly folder: string
  unmount(): Promise<void>
}

/** Mounts the file system on `device`, until the test ends at the latest. */
export async function mountDevice(
  t: Test,
  device: string,
  type: string,
  options: readonly string[] = ['rw'],
): Promise<FileSystem> {
  const folder = join(tempFolder(t), 'inside')
  mkdirSync(folder)
  await run('mount', ['-t', type, '-o', options.join(','), device, folder])
  let isMounted = true
  const unmount = async () => {
    await run('umount', [folder])
    isMounted = false
  }
  t.teardown(async () => {
    if (isMounted) await attempt('umount', ['-l', folder])
  })
  return { folder, unmount }
}
