# A library that QEMU is started with (LD_PRELOAD) so that its user network, libslirp, does not carry its guest to
# services on the host's loopback: connect(2) and sendto(2) as they are, but for addresses that lead there, which
# are refused. libslirp has no option of QEMU's for it (QEMU 10), and carries there whatever is sent to the
# gateway, to 255.255.255.255, to 127.0.0.0/8 or to 0.0.0.0. Port 53 is let through: the host's resolver may be
# there (systemd-resolved's is at 127.0.0.53), and the guest's names are looked up with it.
#
# as --64 loopback.s -o loopback.o
# ld -shared -s -z noseparate-code --hash-style=sysv --build-id=none loopback.o -o loopback.so
.set CONNECT, 42
.set SENDTO, 44
.set AF_INET, 2
.set AF_INET6, 10
.set ECONNREFUSED, 111
.set PORT_53, 0x3500            # in network order

.text
.globl connect, sendto
.type connect, @function
.type sendto, @function

connect:                        # edi socket, rsi address, edx its length
    movq    %rsi, %r11
    movl    %edx, %eax
    call    refused
    jc      refuse
    movl    $CONNECT, %eax
    syscall
    jmp     answer

sendto:                         # edi socket, rsi bytes, rdx how many, ecx flags, r8 address, r9d its length
    movq    %r8, %r11
    movl    %r9d, %eax
    call    refused
    jc      refuse
    movq    %rcx, %r10
    movl    $SENDTO, %eax
    syscall

answer:
    cmpq    $-4095, %rax
    jae     1f
    ret
1:  negl    %eax
    jmp     fail
refuse:
    movl    $ECONNREFUSED, %eax
fail:                           # with the errno eax
    pushq   %rax
    call    *__errno_location@GOTPCREL(%rip)
    popq    %rcx
    movl    %ecx, (%rax)
    movq    $-1, %rax
    ret

refused:                        # sets the carry if the address r11 of eax bytes leads to the loopback; changes eax
    testq   %r11, %r11
    jz      no
    cmpl    $8, %eax
    jb      no
    cmpw    $PORT_53, 2(%r11)
    je      no
    cmpw    $AF_INET, (%r11)
    je      inet
    cmpw    $AF_INET6, (%r11)
    jne     no
    cmpl    $24, %eax
    jb      no
    movl    8(%r11), %eax       # the first eight bytes of ::, ::1 and ::ffff:127.0.0.1
    orl     12(%r11), %eax
    jnz     no
    movl    16(%r11), %eax
    cmpl    $0xffff0000, %eax
    je      mapped
    testl   %eax, %eax
    jnz     no
    movl    20(%r11), %eax
    andl    $0xfeffffff, %eax   # the last byte may be one
    jz      yes
    jmp     no
mapped:
    movl    20(%r11), %eax
    jmp     address
inet:
    movl    4(%r11), %eax
address:
    testl   %eax, %eax          # 0.0.0.0 is this host
    jz      yes
    cmpb    $127, %al
    je      yes
no:
    clc
    ret
yes:
    stc
    ret

.section .note.GNU-stack, "", @progbits
