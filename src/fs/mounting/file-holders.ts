/** Tells which process has a file of a mount open, from /proc, without asking the mount. */
import { readdirSync, readFileSync, readlinkSync } from 'node:fs'

/** For a process with more descriptors than these the answer is "perhaps". */
const MAX_DESCRIPTORS = 256

/**
 * Reports whether the thread or process `pid` may have a file with the inode number `ino` open for writing. Returns true
 * if that cannot be found out.
 *
 * @param pid the id in the kernel's request: 0 for a process of another PID namespace
 */
export function mayHoldForWriting(pid: number, ino: number, proc = '/proc'): boolean {
  try {
    // In the /proc of another PID namespace these ids belong to other processes.
    if (pid === 0 || readlinkSync(`${proc}/self`) !== String(process.pid)) return true
    const folder = `${proc}/${pid}/fdinfo`
    const names = readdirSync(folder)
    return names.length > MAX_DESCRIPTORS || names.some(name => isOf(`${folder}/${name}`, ino))
  } catch {
    return true
  }
}

/** Reads fdinfo (proc_pid_fdinfo(5)): flags are octal, and their last digit is the access mode. */
function isOf(file: string, ino: number): boolean {
  let text: string
  try {
    text = readFileSync(file, 'latin1')
  } catch (error) {
    // ENOENT: it was closed meanwhile.
    return (error as NodeJS.ErrnoException).code !== 'ENOENT'
  }
  const found = /^ino:\s*(\d+)$/m.exec(text)
  const mode = /^flags:\s*[0-7]*([0-7])$/m.exec(text)
  // Linux before 5.14 shows no inode number.
  if (!found || !mode) return true
  return Number(found[1]) === ino && (Number(mode[1]) & 3) !== 0
}
