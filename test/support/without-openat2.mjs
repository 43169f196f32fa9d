/** For `node --import`: openat2(2) fails with the errno DENY_ERRNO, as under seccomp filters that forbid it. */
import koffi from 'koffi'

const libc = koffi.load('libc.so.6')
const prctl = libc.func('int prctl(int what, ...)')
const syscall = libc.func('long syscall(long number, ...)')

const PR_SET_NO_NEW_PRIVS = 38
const PR_SET_SECCOMP = 22
const SECCOMP_MODE_FILTER = 2
const SECCOMP_RET_ALLOW = 0x7fff0000
const SECCOMP_RET_ERRNO = 0x00050000
const OPENAT2 = 437
const BPF_LD_W_ABS = 0x20
const BPF_JEQ = 0x15
const BPF_RET = 0x06

const errno = Number(process.env.DENY_ERRNO)
const program = [
  [BPF_LD_W_ABS, 0, 0, 0],
  [BPF_JEQ, 0, 1, OPENAT2],
  [BPF_RET, 0, 0, SECCOMP_RET_ERRNO | errno],
  [BPF_RET, 0, 0, SECCOMP_RET_ALLOW],
]
const filter = Buffer.alloc(program.length * 8)
program.forEach(([code, yes, no, k], index) => {
  filter.writeUInt16LE(code, index * 8)
  filter.writeUInt8(yes, index * 8 + 2)
  filter.writeUInt8(no, index * 8 + 3)
  filter.writeUInt32LE(k, index * 8 + 4)
})
const head = Buffer.alloc(16)
head.writeUInt16LE(program.length, 0)
head.writeBigUInt64LE(koffi.address(filter), 8)
const zeros = ['unsigned long', 0, 'unsigned long', 0, 'unsigned long', 0]
prctl(PR_SET_NO_NEW_PRIVS, 'unsigned long', 1, ...zeros)
prctl(PR_SET_SECCOMP, 'unsigned long', SECCOMP_MODE_FILTER, 'void *', head)
if (
  syscall(OPENAT2, 'int', -1, 'str', 'x', 'void *', head, 'size_t', 24) !== -1 ||
  koffi.errno() !== errno
) {
  throw new Error('openat2 is not denied')
}
