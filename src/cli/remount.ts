/** `mount -o remount`: makes a mount read-only after a flush, and lets programs write again. */
import { MountError, printable, SystemError } from '../errors.js'
import type { ServerConnection } from '../control/client.js'
import { connectTo } from '../control/find.js'
import { changeFlags } from '../fs/mounting/mount-flags.js'
import { usersOf } from '../fs/mounting/mount-users.js'
import * as libc from '../io/libc.js'
import { FS_TYPE, type MountInfo, mountOn } from '../io/mountinfo.js'
import { ask, syncFiles } from './mounted.js'
import { complain } from './output.js'

/**
 * Changes the mount on `folder`. Of `options`, those count that are flags of mount(2); mount(8) also repeats what the mount
 * was made with. Throws MountError; then the mount is as before.
 */
export async function remount(folder: string, options: readonly string[]): Promise<number> {
  const mount = mountOn(folder)
  if (!mount) throw new MountError(`${folder}: no image is mounted there by vimgfs`)
  if (process.geteuid?.() !== 0) {
    throw new MountError(
      `${folder}: only root may change a mount; unmount it and mount it as you want it`,
    )
  }
  const access = options.findLast(option => option === 'ro' || option === 'rw')
  const readsOnly = access === undefined ? isReadOnly(mount) : access === 'ro'
  if (readsOnly === isReadOnly(mount)) {
    change(mount, options, readsOnly)
    return 0
  }
  const server = (await connectTo(folder)) as ServerConnection
  try {
    if (readsOnly) await holdWriting(mount, server, options)
    else {
      // The server refuses to write an image that it has opened for reading.
      await ask(server, { do: 'remount', write: true })
      change(mount, options, false)
    }
    return 0
  } finally {
    server.close()
  }
}

async function holdWriting(
  mount: MountInfo,
  server: ServerConnection,
  options: readonly string[],
): Promise<void> {
  // The kernel refuses this while a file is open for writing.
  change(mount, options, true)
  try {
    await syncFiles(server, line => complain(`vimgfs: ${printable(line)}\n`))
    await ask(server, { do: 'remount', write: false })
  } catch (error) {
    change(mount, options, false)
    throw error
  }
}

const isReadOnly = ({ flags }: MountInfo): boolean => flags.split(',').includes('ro')

/** Tells the kernel. Flags that nobody names stay as they are. Throws MountError. */
function change(mount: MountInfo, options: readonly string[], readsOnly: boolean): void {
  const { mountpoint, source, flags: own, options: ofFileSystem } = mount
  const now = `${own},${ofFileSystem}`.split(',')
  const flags = [...now, ...options].reduce(
    (all, option) => changeFlags(all, option) ?? all,
    libc.MS_REMOUNT | (readsOnly ? libc.MS_RDONLY : 0),
  )
  try {
    libc.mount(source, mountpoint, FS_TYPE, flags, '')
  } catch (error) {
    if (!(error instanceof SystemError)) throw error
    if (error.code !== 'EBUSY') throw new MountError(`${mountpoint}: remounting: ${error.code}`)
    const { who } = usersOf(mount)
    const by = who === '' ? 'a program' : who
    throw new MountError(
      `${mountpoint}: ${by} has a file of it open for writing, so it stays writable; end that, and try again`,
    )
  }
}
