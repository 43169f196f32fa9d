/** The mount that a server leaves behind if it dies while it starts, for want of memory for example. */
import { isExpected } from '../../errors.js'
import { FS_TYPE, mountAt, realMountpoint } from '../../io/mountinfo.js'

export class LeftMount {
  private readonly folder: string
  private readonly before: string | undefined

  /** Make it before the server starts. */
  constructor(mountpoint: string) {
    this.folder = realMountpoint(mountpoint)
    this.before = mountAt(this.folder)?.id
  }

  /**
   * Takes the mount away. Call it only once the server has ended: no program can have used the mount then. Returns whether
   * none is left.
   */
  async remove(): Promise<boolean> {
    const mount = mountAt(this.folder)
    if (mount?.type !== FS_TYPE || mount.id === this.before) return true
    const { unmountFuse } = await import('./mount.js')
    try {
      unmountFuse(mount, true)
      return true
    } catch (error) {
      if (!isExpected(error)) throw error
      return false
    }
  }
}
