/** Archives that the Linux kernel unpacks into its first file system ("newc"). */
const TRAILER = 'TRAILER!!!'
const FOLDER_MODE = 0o040755
const FILE_MODE = 0o100755
const ALIGNMENT = 4

export interface Member {
  readonly path: string
  /** A folder has none. */
  readonly bytes?: Buffer
}

/** Returns an archive. Folders must come before their content. Everything belongs to root and is executable. */
export function archive(members: readonly Member[]): Buffer {
  const parts = members.flatMap(({ path, bytes }, index) =>
    member(index + 1, path, bytes ? FILE_MODE : FOLDER_MODE, bytes ?? Buffer.alloc(0)),
  )
  return Buffer.concat([...parts, ...member(0, TRAILER, 0, Buffer.alloc(0))])
}

/** Documentation/driver-api/early-userspace/buffer-format.rst */
function member(inode: number, path: string, mode: number, bytes: Buffer): Buffer[] {
  const name = Buffer.from(`${path}\0`)
  const [uid, gid, links, time] = [0, 0, 1, 0]
  const [major, minor, ofMajor, ofMinor, sum] = [0, 0, 0, 0, 0]
  const fields = [inode, mode, uid, gid, links, time, bytes.length, major, minor, ofMajor, ofMinor]
  const words = [...fields, name.length, sum].map(n => n.toString(16).padStart(8, '0'))
  const head = Buffer.concat([Buffer.from(`070701${words.join('')}`), name])
  return [padded(head), padded(bytes)]
}

function padded(bytes: Buffer): Buffer {
  const rest = bytes.length % ALIGNMENT
  return rest === 0 ? bytes : Buffer.concat([bytes, Buffer.alloc(ALIGNMENT - rest)])
}
