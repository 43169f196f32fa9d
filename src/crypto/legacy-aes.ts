import type { CipherSpec } from './spec.js'

const KEY_BYTES = 16

/**
 * The cipher of qcow and qcow2 images with encryption method 1: AES-128-CBC, the sectors of the disk that
 * the guest sees numbered in 64 bits. The key is the passphrase itself, its first 16 bytes or zeros behind
 * it; nothing in the image tells whether it is right. (QEMU, crypto/block-qcow.c, which the text of the
 * qcow2 specification, "AES encryption", contradicts.)
 */
export function legacyAesSpec(passphrase: Uint8Array): CipherSpec {
  const key = new SharedArrayBuffer(KEY_BYTES)
  new Uint8Array(key).set(passphrase.subarray(0, KEY_BYTES))
  return { mode: 'cbc', ivGenerator: 'plain64', ivHash: undefined, key }
}
